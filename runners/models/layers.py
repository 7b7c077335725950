"""Operations of both families: normalisation, attention, and the inputs of a prefill.

Shapes: B batch, S image and prompt, P positions attended to, T positions, C hidden, A heads,
K key-value heads, D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from runners.decoder.sequences import SequenceRequest
from runners.staging import to_device

_MASK_ALIGNMENT = 8  # strides of a mask in torch's memory-efficient attention


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """Images and prompts of a batch, padded on the right."""

    embeds: Tensor  # (B, S, C)
    num_prefix_tokens: Tensor  # (B,) image and prompt tokens, without padding


def stack_requests(
    requests: Sequence[SequenceRequest], embed: Callable[[Tensor], Tensor], device: torch.device
) -> PrefillInputs:
    """Return the inputs of a batch, features and prompts of any lengths.

    `embed` returns the embeddings (S, C) of the token ids of all prompts (S,), both on `device`.
    """
    tokens: list[tuple[int, int, int]] = []  # id, row and position of each token of a prompt
    for row, request in enumerate(requests):
        start = len(request.image_features)
        tokens += [(each, row, start + index) for index, each in enumerate(request.prompt_ids)]
    token_ids, rows, positions = to_device(tokens, device, torch.long).view(-1, 3).T
    prompts = embed(token_ids)
    lengths = [request.num_prefix_tokens for request in requests]
    embeds = prompts.new_zeros(len(requests), max(lengths), prompts.shape[-1])
    for own, request in zip(embeds, requests, strict=True):
        own[: len(request.image_features)] = request.image_features
    embeds[rows, positions] = prompts
    return PrefillInputs(embeds, to_device(lengths, device))


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer normalisation over C, with weight and bias."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised states (…, C)."""
        return layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.epsilon)


def as_bias(is_visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as what is added to scores: attention would compute that from a boolean in each
    layer, and align its rows.
    """
    width = is_visible.shape[-1]
    num_aligned = -(-width // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    size = (*is_visible.shape[:-1], num_aligned)
    bias = torch.zeros(size, dtype=dtype, device=is_visible.device)[..., :width]
    return bias.masked_fill_(~is_visible, -torch.inf)


def split_heads(states: Tensor, head_size: int) -> Tensor:
    """Return (B, A, T, D) of (B, T, A * D)."""
    return states.view(*states.shape[:-1], -1, head_size).transpose(1, 2)


def split_parts(states: Tensor, num_parts: int, head_size: int) -> Tensor:
    """Return (B, T, parts, A, D) of (B, T, parts * A * D), as of a layer that computes queries,
    keys and values.
    """
    return states.view(*states.shape[:-1], num_parts, -1, head_size)


def merge_heads(states: Tensor) -> Tensor:
    """Return (B, T, A * D) of (B, A, T, D)."""
    return states.transpose(1, 2).flatten(2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return (B, A, T, D) of `queries` (B, A, T, D) over `keys` and `values` (B, K, P, D).

    `mask` (B, 1, T or 1, P) is that of `as_bias`. With fewer key-value heads than heads (K < A),
    heads share them.
    """
    is_shared = queries.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(
        queries, keys, values, mask, scale=scale, enable_gqa=is_shared
    )


def attend_capped(
    queries: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor, scale: float, softcap: float
) -> Tensor:
    """Like `attend`, with scores capped to ± `softcap` (Gemma 2, arXiv 2408.00118, section 2)."""
    num_heads, num_positions = queries.shape[1:3]
    # The heads that share keys are rows of one product: their keys are never repeated.
    # (B, K, A / K * T, D)
    rows = queries.reshape(len(queries), keys.shape[1], -1, queries.shape[3])
    scores = torch.tanh(rows @ keys.transpose(2, 3) * scale / softcap) * softcap
    by_head = scores.view(len(queries), num_heads, num_positions, -1)
    by_head = by_head.masked_fill(~is_visible, torch.finfo(scores.dtype).min)
    weights = torch.softmax(by_head, dim=-1, dtype=torch.float32).to(queries.dtype)
    return (weights.view_as(scores) @ values).view(queries.shape)
