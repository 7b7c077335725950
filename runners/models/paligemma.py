"""PaliGemma's decoder: Gemma (1 or 2) over image features, prompt and answer.

Equivalent to transformers' GemmaForCausalLM and Gemma2ForCausalLM (models/gemma, models/gemma2):
pre-norm (Gemma 2 also post-norm), rotary positions, grouped-query attention, gated feed-forward,
soft caps. Attention over image and prompt is bidirectional; positions start at 1. Prompts are
padded on the right; every mask hides the padding, and the answer overwrites it in the cache, so
that it never changes an answer. Knows no tasks. Shapes: B batch, S image and prompt (padded), T
positions, P positions attended to, C hidden, A heads, K key-value heads, D head size, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, rms_norm

from runners.kv_cache.memory import DecoderShape, KeyValueCache, Slots
from runners.kv_cache.slot_cache import SlotCache, TokenPlaces
from runners.models.layers import (
    Linear,
    as_bias,
    attend,
    attend_capped,
    merge_heads,
    split_parts,
)
from runners.models.weights import DecoderCheckpoint, DecoderWeights
from runners.tokens.text import CheckpointText


@dataclass(frozen=True, slots=True)
class RootMeanSquareNorm:
    """RMS normalisation, computed in float32 for every dtype."""

    factor: Tensor  # (C,) float32: 1 + weight
    epsilon: float

    def __call__(self, hidden_states: Tensor) -> Tensor:
        normed = rms_norm(hidden_states.float(), self.factor.shape, self.factor, self.epsilon)
        return normed.to(hidden_states.dtype)


@dataclass(frozen=True, slots=True)
class GemmaLayer:
    """The weights of one layer; only Gemma 2 has norms after attention and feed-forward."""

    input_norm: RootMeanSquareNorm
    qkv: Linear
    out: Linear
    after_attention: RootMeanSquareNorm | None
    feed_forward_norm: RootMeanSquareNorm
    gate_up: Linear
    down: Linear
    after_feed_forward: RootMeanSquareNorm | None
    has_window: bool

    @classmethod
    def of(cls, weights: DecoderWeights, epsilon: float, has_window: bool) -> "GemmaLayer":
        attention = weights.at("self_attn")
        mlp = weights.at("mlp")

        def norm(name: str) -> RootMeanSquareNorm:
            return RootMeanSquareNorm(1.0 + weights.tensor(f"{name}.weight").float(), epsilon)

        is_gemma2 = weights.has("pre_feedforward_layernorm.weight")
        return cls(
            norm("input_layernorm"),
            attention.linear("q_proj", "k_proj", "v_proj"),
            attention.linear("o_proj"),
            norm("post_attention_layernorm") if is_gemma2 else None,
            norm("pre_feedforward_layernorm" if is_gemma2 else "post_attention_layernorm"),
            mlp.linear("gate_proj", "up_proj"),
            mlp.linear("down_proj"),
            norm("post_feedforward_layernorm") if is_gemma2 else None,
            has_window,
        )

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_up(self.feed_forward_norm(hidden_states)).chunk(2, dim=-1)
        output = self.down(gelu(gate, approximate="tanh") * up)
        if self.after_feed_forward is not None:
            output = self.after_feed_forward(output)
        return hidden_states + output


@dataclass(frozen=True, slots=True)
class GemmaAttentionMetadata:
    """Rotations and masks (`Gemma.mask`) of a prefill or decode step, shared by all layers."""

    cos: Tensor  # (B, T, 1, D / 2)
    sin: Tensor  # (B, T, 1, D / 2)
    mask: Tensor  # (B, 1, T or 1, P) of full attention
    window_mask: Tensor  # (B, 1, T or 1, P) of sliding-window attention


class Gemma:
    """Embeddings, layers and output head of a Gemma model.

    `config` has the values of transformers' GemmaConfig (PaliGemma) or Gemma2Config (PaliGemma 2).
    """

    def __init__(self, config: Mapping[str, Any], weights: DecoderWeights) -> None:
        self.head_size: int = config["head_dim"]
        self.num_key_value_heads: int = config["num_key_value_heads"]
        self.sliding_window: int | None = config.get("sliding_window")
        self._num_heads: int = config["num_attention_heads"]
        self._embeddings = weights.tensor("embed_tokens.weight")  # (V, C)
        # Stored on the device: a captured step cannot copy from the host.
        self._embedding_scale = torch.tensor(math.sqrt(config["hidden_size"])).to(self._embeddings)
        self._head = weights.output_head(self._embeddings)
        epsilon = config["rms_norm_eps"]
        self._norm = RootMeanSquareNorm(1.0 + weights.tensor("norm.weight").float(), epsilon)
        # transformers' GemmaRotaryEmbedding
        exponents = torch.arange(0, self.head_size, 2, dtype=torch.float32) / self.head_size
        frequencies = 1.0 / config["rope_parameters"]["rope_theta"] ** exponents
        self._inverse_frequencies = frequencies.to(self._embeddings.device)  # (D / 2,)
        self._attention_cap: float | None = config.get("attn_logit_softcapping")
        self._logit_cap: float | None = config.get("final_logit_softcapping")
        self._scale = config.get("query_pre_attn_scalar", self.head_size) ** -0.5
        num_layers = config["num_hidden_layers"]
        kinds = config.get("layer_types") or ["full_attention"] * num_layers
        are_windows = [kind == "sliding_attention" for kind in kinds]
        self._layers = weights.layers(
            num_layers, lambda index, layer: GemmaLayer.of(layer, epsilon, are_windows[index])
        )

    @property
    def dtype(self) -> torch.dtype:
        return self._embeddings.dtype

    @property
    def device(self) -> torch.device:
        return self._embeddings.device

    @property
    def num_tokens(self) -> int:
        return len(self._embeddings)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the scaled embeddings (…, C)."""
        return self._embeddings[token_ids] * self._embedding_scale

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (B, T, 1, D / 2) of `positions` (B, T)."""
        angles = (positions[..., None].float() * self._inverse_frequencies)[:, :, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def mask(self, is_visible: Tensor) -> Tensor:
        """Return a mask as the attention of this model takes it."""
        return is_visible if self._attention_cap is not None else as_bias(is_visible, self.dtype)

    def prefill(
        self,
        hidden_states: Tensor,
        metadata: GemmaAttentionMetadata,
        slots: Slots,
        cache: KeyValueCache,
        last_positions: Tensor,
    ) -> Tensor:
        """Process image and prompt (B, T, C) and store their keys and values.

        Return the last layer's states (B, 1, C) at `last_positions` (B,): nothing reads its states
        at others.
        """
        for index, layer in enumerate(self._layers):
            queries, keys_and_values = self._project(layer, hidden_states, metadata)
            cache.write_prefix(index, slots, keys_and_values)
            keys, values = keys_and_values.permute(2, 0, 3, 1, 4)
            if index == len(self._layers) - 1:
                rows = torch.arange(len(hidden_states), device=self.device)
                hidden_states = hidden_states[rows, last_positions][:, None]
                queries = queries[rows, :, last_positions][:, :, None]
            hidden_states = self._finish(layer, hidden_states, queries, keys, values, metadata)
        return hidden_states

    def decode_step(
        self,
        hidden_states: Tensor,
        metadata: GemmaAttentionMetadata,
        places: TokenPlaces,
        cache: KeyValueCache,
    ) -> Tensor:
        rows = places.rows()
        for index, layer in enumerate(self._layers):
            queries, keys_and_values = self._project(layer, hidden_states, metadata)
            cache.append(index, rows, places.positions, keys_and_values)
            keys, values = cache.read(index, places.slots, places.length)
            hidden_states = self._finish(layer, hidden_states, queries, keys, values, metadata)
        return hidden_states

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (B * T, V) of the last layer's states (B, T, C)."""
        logits = self._head(self._norm(hidden_states)).flatten(0, 1)
        cap = self._logit_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _project(
        self, layer: GemmaLayer, hidden_states: Tensor, metadata: GemmaAttentionMetadata
    ) -> tuple[Tensor, Tensor]:
        """Return rotated queries (B, A, T, D), and rotated keys with values (B, T, 2, K, D).

        As in transformers' apply_rotary_pos_emb. Halves in place take less time than a
        concatenation, whose rows are short.
        """
        qkv = layer.qkv(layer.input_norm(hidden_states))
        heads = qkv.view(*qkv.shape[:-1], -1, self.head_size)  # (B, T, A + 2 * K, D)
        first, second = heads[:, :, : -self.num_key_value_heads].chunk(2, dim=-1)
        to_second = first * metadata.sin
        first.mul_(metadata.cos).sub_(second * metadata.sin)
        second.mul_(metadata.cos).add_(to_second)
        keys_and_values = qkv[..., self._num_heads * self.head_size :]
        queries = heads[:, :, : self._num_heads].transpose(1, 2)
        return queries, split_parts(keys_and_values, 2, self.head_size)

    def _finish(
        self,
        layer: GemmaLayer,
        hidden_states: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        metadata: GemmaAttentionMetadata,
    ) -> Tensor:
        mask = metadata.window_mask if layer.has_window else metadata.mask
        if self._attention_cap is None:
            attended = attend(queries, keys, values, mask, self._scale)
        else:
            attended = attend_capped(queries, keys, values, mask, self._scale, self._attention_cap)
        output = layer.out(merge_heads(attended))
        if layer.after_attention is not None:
            output = layer.after_attention(output)
        return layer.feed_forward(hidden_states + output)


_FIRST_POSITION = 1


class PaliGemmaDecoder:
    """A PaliGemma checkpoint without its vision encoder."""

    def __init__(self, checkpoint: DecoderCheckpoint) -> None:
        config = checkpoint.config
        text = config["text_config"]
        vision = config["vision_config"]
        gemma = Gemma(text, checkpoint.weights)
        self._gemma = gemma
        self._device = gemma.device
        self.rules = checkpoint.rules
        # `<bos> prompt \\n`; source: transformers, models/paligemma/processing_paligemma.py
        self.text = CheckpointText(
            checkpoint.tokenizer,
            checkpoint.constraints,
            pad_token_id=config["pad_token_id"],
            start_ids=(config["bos_token_id"],),
            end_ids=tuple(checkpoint.tokenizer.encode([("\n", False)])),
            labels_start_bare=False,
        )
        self.shape = DecoderShape(
            num_layers=text["num_hidden_layers"],
            num_heads=gemma.num_key_value_heads,
            num_positions=text["max_position_embeddings"],
            head_size=gemma.head_size,
            num_tokens=gemma.num_tokens,
            dtype=gemma.dtype,
            device=self._device,
            num_image_tokens=(vision["image_size"] // vision["patch_size"]) ** 2,
        )
        self.adapters = checkpoint.adapters
        self.can_draft = True
        self.start_token_id: int | None = None

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._gemma.embed(token_ids)

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,
        first: TokenPlaces | None,  # noqa: ARG002  # there is none
    ) -> Tensor:
        """Run Gemma over image features and prompts.

        A sliding window does not apply within the prefix: transformers joins the prefix block to
        the window's mask.
        """
        positions = torch.arange(embeds.shape[1], device=self._device)
        is_visible = positions < num_prefix_tokens[:, None]
        mask = self._gemma.mask(is_visible[:, None, None])
        rotation = self._gemma.rotation(positions[None] + _FIRST_POSITION)
        metadata = GemmaAttentionMetadata(*rotation, mask, mask)
        last_positions = num_prefix_tokens - 1
        states = self._gemma.prefill(embeds, metadata, slots, cache.self_attention, last_positions)
        return self._gemma.logits(states)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        positions = torch.arange(places.length, device=self._device)
        distance = places.positions[..., None] - positions  # (B, T, P)
        is_visible = distance >= 0
        window = self._gemma.sliding_window
        mask = self._gemma.mask(is_visible[:, None])
        window_mask = mask
        if window is not None:
            window_mask = self._gemma.mask((is_visible & (distance < window))[:, None])
        rotation = self._gemma.rotation(places.positions + _FIRST_POSITION)
        metadata = GemmaAttentionMetadata(*rotation, mask, window_mask)
        embeds = self._gemma.embed(places.token_ids)
        states = self._gemma.decode_step(embeds, metadata, places, cache.self_attention)
        return self._gemma.logits(states)
