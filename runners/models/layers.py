"""The few operations that both families' decoders are made of.

Shapes: B batch, T positions, C hidden, A heads, K key-value heads, S keys, D head size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention


class Linear(Protocol):
    """A matrix (out, in), with a bias or none, in whatever precision."""

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return (…, out) of (…, in)."""
        ...


@dataclass(frozen=True, slots=True)
class FloatLinear:
    """A matrix of the dtype of what it multiplies."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return (…, out) of (…, in)."""
        return linear(hidden_states, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Mean and variance to 0 and 1, then a factor and a bias."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the normed states (…, C)."""
        return layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.epsilon)


def split_heads(states: Tensor, head_size: int) -> Tensor:
    """Return (B, A, T, D) of (B, T, A * D)."""
    return states.view(*states.shape[:-1], -1, head_size).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """Return (B, T, A * D) of (B, A, T, D)."""
    return states.transpose(1, 2).flatten(2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor, scale: float) -> Tensor:
    """Return (B, A, T, D) of `queries` (B, A, T, D) over `keys` and `values` (B, K, S, D); a head's keys may be shared.

    `is_visible` (B, 1, T or 1, S) says which keys a query sees.
    """
    is_shared = queries.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(queries, keys, values, is_visible, scale=scale, enable_gqa=is_shared)


def attend_capped(
    queries: Tensor, keys: Tensor, values: Tensor, is_visible: Tensor, scale: float, softcap: float
) -> Tensor:
    """Do the same with scores that stay within ± `softcap`, as Gemma 2 has them (arXiv 2408.00118, section 2)."""
    num_shared = queries.shape[1] // keys.shape[1]
    scores = queries @ keys.repeat_interleave(num_shared, 1).transpose(2, 3) * scale
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~is_visible, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(queries.dtype)
    return weights @ values.repeat_interleave(num_shared, 1)
