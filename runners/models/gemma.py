"""Gemma 1 and 2 as PaliGemma uses them: a prefill, then decode steps over the slots of a key-value cache.

Equivalent to transformers' GemmaForCausalLM and Gemma2ForCausalLM (models/gemma, models/gemma2): pre-norm (Gemma 2 also
post-norm), rotary positions, grouped-query attention, gated feed-forward, soft caps.
Shapes: B batch, T positions, P positions attended to, C hidden, A heads, K key-value heads, D head size, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from runners.decoder.drafts import TokenPlaces
from runners.decoder.kv_cache import KeyValueCache
from runners.models.layers import attend, attend_capped, merge_heads, split_heads
from runners.models.linear import Linear
from runners.models.weights import DecoderWeights


@dataclass(frozen=True, slots=True)
class RootMeanSquareNorm:
    """RMS normalisation with a factor of 1 + weight, computed in float32 for every dtype."""

    weight: Tensor
    epsilon: float

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised states (…, C)."""
        states = hidden_states.float()
        normed = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (normed * (1.0 + self.weight.float())).to(hidden_states.dtype)


@dataclass(frozen=True, slots=True)
class GemmaLayer:
    """The weights of one layer; only Gemma 2 has the norms `after_attention` and `after_feed_forward`."""

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
        attention, mlp = weights.at("self_attn"), weights.at("mlp")

        def norm(name: str) -> RootMeanSquareNorm:
            return RootMeanSquareNorm(weights.tensor(f"{name}.weight"), epsilon)

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
        """Return the states (B, T, C) after the feed-forward block."""
        gate, up = self.gate_up(self.feed_forward_norm(hidden_states)).chunk(2, dim=-1)
        output = self.down(gelu(gate, approximate="tanh") * up)
        return hidden_states + (self.after_feed_forward(output) if self.after_feed_forward else output)


@dataclass(frozen=True, slots=True)
class GemmaAttentionMetadata:
    """Rotations and masks of a prefill or decode step, computed once for all layers."""

    cos: Tensor  # (B, 1, T, D)
    sin: Tensor  # (B, 1, T, D)
    is_visible: Tensor  # (B, 1, T or 1, P) mask of full attention
    is_in_window: Tensor  # (B, 1, T or 1, P) mask of sliding-window attention


class Gemma:
    """Embeddings, layers and output head of a Gemma model."""

    def __init__(self, config: Any, weights: DecoderWeights) -> None:  # transformers' GemmaConfig or Gemma2Config
        self.head_size: int = config.head_dim
        self.num_key_value_heads: int = config.num_key_value_heads
        self.sliding_window: int | None = getattr(config, "sliding_window", None)
        self._num_heads: int = config.num_attention_heads
        self._embeddings = weights.tensor("embed_tokens.weight")  # (V, C)
        # On the device: a captured step cannot copy from the host.
        self._embedding_scale = torch.tensor(math.sqrt(config.hidden_size)).to(self._embeddings)
        self._head = weights.output_head(self._embeddings)
        self._norm = RootMeanSquareNorm(weights.tensor("norm.weight"), config.rms_norm_eps)
        self._inverse_frequencies = _inverse_frequencies(config).to(self._embeddings.device)  # (D / 2,)
        self._attention_cap: float | None = getattr(config, "attn_logit_softcapping", None)
        self._logit_cap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = getattr(config, "query_pre_attn_scalar", self.head_size) ** -0.5
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        self._layers = weights.layers(
            len(kinds),
            lambda index, layer: GemmaLayer.of(layer, config.rms_norm_eps, kinds[index] == "sliding_attention"),
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
        """Return cosines and sines (B, 1, T, D) of `positions` (B, T)."""
        angles = positions[..., None].float() * self._inverse_frequencies
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def prefill(
        self, hidden_states: Tensor, metadata: GemmaAttentionMetadata, slots: slice, cache: KeyValueCache
    ) -> Tensor:
        """Process image and prompt (B, T, C) and store their keys and values; return the last layer's states."""
        for index, layer in enumerate(self._layers):
            queries, keys, values = self._project(layer, hidden_states, metadata)
            cache.write_prefix(index, slots, keys, values)
            hidden_states = self._finish(layer, hidden_states, queries, keys, values, metadata)
        return hidden_states

    def decode_step(
        self, hidden_states: Tensor, metadata: GemmaAttentionMetadata, places: TokenPlaces, cache: KeyValueCache
    ) -> Tensor:
        """Process tokens (B, T, C), stored at their places; return the last layer's states."""
        for index, layer in enumerate(self._layers):
            queries, keys, values = self._project(layer, hidden_states, metadata)
            cache.append(index, places.slots, places.positions, keys, values)
            keys, values = cache.read(index, places.slots, metadata.is_visible.shape[-1])
            hidden_states = self._finish(layer, hidden_states, queries, keys, values, metadata)
        return hidden_states

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return logits (B, V) of the last layer's states (B, C)."""
        logits = self._head(self._norm(hidden_states))
        return logits if self._logit_cap is None else torch.tanh(logits / self._logit_cap) * self._logit_cap

    def _project(
        self, layer: GemmaLayer, hidden_states: Tensor, metadata: GemmaAttentionMetadata
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, A, T, D), keys and values (B, K, T, D), the first two rotated by their positions."""
        states = split_heads(layer.qkv(layer.input_norm(hidden_states)), self.head_size)
        ends = self._num_heads, self._num_heads + self.num_key_value_heads
        queries, keys, values = states.tensor_split(ends, dim=1)
        return _rotated(queries, metadata), _rotated(keys, metadata), values

    def _finish(
        self,
        layer: GemmaLayer,
        hidden_states: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        metadata: GemmaAttentionMetadata,
    ) -> Tensor:
        """Return the states (B, T, C) after attention and feed-forward."""
        is_visible = metadata.is_in_window if layer.has_window else metadata.is_visible
        if self._attention_cap is None:
            attended = attend(queries, keys, values, is_visible, self._scale)
        else:
            attended = attend_capped(queries, keys, values, is_visible, self._scale, self._attention_cap)
        output = layer.out(merge_heads(attended))
        hidden_states = hidden_states + (layer.after_attention(output) if layer.after_attention else output)
        return layer.feed_forward(hidden_states)


def _inverse_frequencies(config: Any) -> Tensor:
    """Return the inverse frequencies (D / 2,) of rotary positions; source: transformers, GemmaRotaryEmbedding."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies: Tensor = 1.0 / config.rope_parameters["rope_theta"] ** exponents
    return frequencies


def _rotated(states: Tensor, metadata: GemmaAttentionMetadata) -> Tensor:
    """Apply rotary positions to `states` (B, A, T, D); source: transformers, apply_rotary_pos_emb."""
    first, second = states.chunk(2, dim=-1)
    return states * metadata.cos + torch.cat([-second, first], dim=-1) * metadata.sin
