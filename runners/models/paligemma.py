"""PaliGemma's decoder: Gemma (1 or 2) over image features, prompt and answer.

Equivalent to transformers' GemmaForCausalLM and Gemma2ForCausalLM (models/gemma, models/gemma2):
pre-norm (Gemma 2 also post-norm), rotary positions, grouped-query attention, gated feed-forward,
soft caps. Attention over image and prompt is bidirectional; positions start at 1. Prompts are
padded on the right; every mask hides the padding, and the answer overwrites it in the cache, so
that it never changes an answer. Knows no tasks. Shapes: B batch, S image and prompt (padded), T
positions, P positions attended to, C hidden, A heads, K key-value heads, D head size, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, unflatten
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention

from runners.kv_cache import DecoderShape, SlotCache, Slots, TokenPlaces
from runners.models.layers import as_bias
from runners.models.weights import DecoderCheckpoint, DecoderWeights
from runners.tokens.text import CheckpointText

_FIRST_POSITION = 1


@dataclass(frozen=True, slots=True)
class RootMeanSquareNorm:
    """RMS normalisation, computed in float32 for every dtype."""

    factor: Tensor  # (C,) float32: 1 + weight
    epsilon: float

    def __call__(self, hidden_states: Tensor) -> Tensor:
        normed = rms_norm(hidden_states.float(), self.factor.shape, self.factor, self.epsilon)
        return normed.to(hidden_states.dtype)


class GemmaLayer:
    """The weights of one layer; only Gemma 2 has norms after attention and feed-forward."""

    def __init__(self, weights: DecoderWeights, epsilon: float, has_window: bool) -> None:
        attention = weights.at("self_attn")
        mlp = weights.at("mlp")

        def norm(name: str) -> RootMeanSquareNorm:
            return RootMeanSquareNorm(1.0 + weights.tensor(f"{name}.weight").float(), epsilon)

        is_gemma2 = weights.has("pre_feedforward_layernorm.weight")
        feed_forward_norm = "pre_feedforward_layernorm" if is_gemma2 else "post_attention_layernorm"
        self.has_window = has_window
        self.input_norm = norm("input_layernorm")
        self.qkv = attention.linear("q_proj", "k_proj", "v_proj")
        self.out = attention.linear("o_proj")
        self.after_attention = norm("post_attention_layernorm") if is_gemma2 else None
        self.feed_forward_norm = norm(feed_forward_norm)
        self.gate_up = mlp.linear("gate_proj", "up_proj")
        self.down = mlp.linear("down_proj")
        self.after_feed_forward = norm("post_feedforward_layernorm") if is_gemma2 else None


class PaliGemmaDecoder:
    """A PaliGemma checkpoint without its vision encoder: a Gemma model over cache slots."""

    def __init__(self, checkpoint: DecoderCheckpoint) -> None:
        config = checkpoint.config["text_config"]  # transformers' GemmaConfig or Gemma2Config
        weights = checkpoint.weights
        self.head_size: int = config["head_dim"]
        self.num_key_value_heads: int = config["num_key_value_heads"]
        self._num_heads: int = config["num_attention_heads"]
        self._window: int | None = config.get("sliding_window")
        self.embeddings = weights.tensor("embed_tokens.weight")  # (V, C)
        # Stored on the device: a captured step cannot copy from the host.
        self._embedding_scale = torch.tensor(math.sqrt(config["hidden_size"])).to(self.embeddings)
        self._head = weights.output_head(self.embeddings)
        epsilon = config["rms_norm_eps"]
        self._norm = RootMeanSquareNorm(1.0 + weights.tensor("norm.weight").float(), epsilon)
        # transformers' GemmaRotaryEmbedding
        exponents = torch.arange(0, self.head_size, 2, dtype=torch.float32) / self.head_size
        frequencies = 1.0 / config["rope_parameters"]["rope_theta"] ** exponents
        self._inverse_frequencies = frequencies.to(self.embeddings.device)  # (D / 2,)
        self._attention_cap: float | None = config.get("attn_logit_softcapping")
        self._logit_cap: float | None = config.get("final_logit_softcapping")
        self._scale = config.get("query_pre_attn_scalar", self.head_size) ** -0.5
        num_layers = config["num_hidden_layers"]
        kinds = config.get("layer_types") or ["full_attention"] * num_layers
        self._layers = weights.layers(
            num_layers,
            lambda index, layer: GemmaLayer(layer, epsilon, kinds[index] == "sliding_attention"),
        )
        vision = checkpoint.config["vision_config"]
        self.rules = checkpoint.rules
        # `<bos> prompt \\n`; source: transformers, models/paligemma/processing_paligemma.py
        self.text = CheckpointText(
            checkpoint.tokenizer,
            checkpoint.constraints,
            pad_token_id=checkpoint.config["pad_token_id"],
            start_ids=(checkpoint.config["bos_token_id"],),
            end_ids=tuple(checkpoint.tokenizer.encode([("\n", False)])),
            bare_ids={},
        )
        self.shape = DecoderShape(
            num_layers=config["num_hidden_layers"],
            num_heads=self.num_key_value_heads,
            num_positions=config["max_position_embeddings"],
            head_size=self.head_size,
            num_tokens=len(self.embeddings),
            dtype=self.embeddings.dtype,
            device=self.embeddings.device,
            num_image_tokens=(vision["image_size"] // vision["patch_size"]) ** 2,
        )
        self.adapters = checkpoint.adapters
        self.start_token_id: int | None = None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the scaled embeddings (…, C)."""
        return self.embeddings[token_ids] * self._embedding_scale

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,
        first: TokenPlaces | None,  # noqa: ARG002  # there is none
    ) -> Tensor:
        """Process image features and prompts; the last layer, at their last positions only.

        A sliding window does not apply within the prefix: transformers joins it to the window's
        mask.
        """
        positions = torch.arange(embeds.shape[1], device=embeds.device)
        mask = self._mask((positions < num_prefix_tokens[:, None])[:, None, None])
        rotation = self._rotation(positions[None])
        rows = torch.arange(len(embeds), device=embeds.device)
        last_positions = num_prefix_tokens - 1
        states = embeds
        for index, layer in enumerate(self._layers):
            queries, keys_and_values = self._project(layer, states, rotation)
            cache.self_attention.write_prefix(index, slots, keys_and_values)
            keys, values = keys_and_values.permute(2, 0, 3, 1, 4)
            if index == len(self._layers) - 1:
                states = states[rows, last_positions][:, None]
                queries = queries[rows, :, last_positions][:, :, None]
            states = self._finish(layer, states, self._attend(queries, keys, values, mask))
        return self._logits(states)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        positions = torch.arange(places.length, device=self.embeddings.device)
        distance = places.positions[..., None] - positions  # (B, T, P)
        is_visible = distance >= 0
        mask = window_mask = self._mask(is_visible[:, None])
        if self._window is not None:
            window_mask = self._mask((is_visible & (distance < self._window))[:, None])
        rotation = self._rotation(places.positions)
        states = self.embed(places.token_ids)
        for index, layer in enumerate(self._layers):
            queries, keys_and_values = self._project(layer, states, rotation)
            keys, values = cache.self_attention.extend(index, places, keys_and_values)
            layer_mask = window_mask if layer.has_window else mask
            states = self._finish(layer, states, self._attend(queries, keys, values, layer_mask))
        return self._logits(states)

    def _mask(self, is_visible: Tensor) -> Tensor:
        """Return a mask (B, 1, T or 1, P) as the attention of this model takes it."""
        if self._attention_cap is not None:
            return is_visible
        return as_bias(is_visible, self.embeddings.dtype)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (B, T, 1, D / 2) of `positions` (B, T), counted from 0."""
        positions = (positions + _FIRST_POSITION)[..., None].float()
        angles = (positions * self._inverse_frequencies)[:, :, None]
        return angles.cos().to(self.embeddings.dtype), angles.sin().to(self.embeddings.dtype)

    def _project(
        self, layer: GemmaLayer, states: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return rotated queries (B, A, T, D), and rotated keys with values (B, T, 2, K, D).

        As in transformers' apply_rotary_pos_emb. Halves in place take less time than a
        concatenation, whose rows are short.
        """
        cos, sin = rotation
        qkv = layer.qkv(layer.input_norm(states))
        heads = unflatten(qkv, -1, (-1, self.head_size))  # (B, T, A + 2 * K, D)
        first, second = heads[:, :, : -self.num_key_value_heads].chunk(2, dim=-1)
        to_second = first * sin
        first.mul_(cos).sub_(second * sin)
        second.mul_(cos).add_(to_second)
        keys_and_values = unflatten(heads[:, :, self._num_heads :], 2, (2, -1))
        return heads[:, :, : self._num_heads].transpose(1, 2), keys_and_values

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Return (B, A, T, D) of keys (B, K, P, D); Gemma 2 caps scores (arXiv 2408.00118, 2)."""
        num_heads, num_positions = queries.shape[1:3]
        if self._attention_cap is None:
            is_shared = num_heads != keys.shape[1]
            return scaled_dot_product_attention(
                queries, keys, values, mask, scale=self._scale, enable_gqa=is_shared
            )
        cap = self._attention_cap
        # The heads that share keys are rows of one product: their keys are never repeated.
        # (B, K, A / K * T, D)
        rows = queries.reshape(len(queries), keys.shape[1], -1, queries.shape[3])
        scores = torch.tanh(rows @ keys.transpose(2, 3) * self._scale / cap) * cap
        by_head = scores.view(len(queries), num_heads, num_positions, -1)
        by_head = by_head.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = torch.softmax(by_head, dim=-1, dtype=torch.float32).to(queries.dtype)
        return (weights.view_as(scores) @ values).view(queries.shape)

    def _finish(self, layer: GemmaLayer, states: Tensor, attended: Tensor) -> Tensor:
        """Return the states (B, T, C) after a layer that has `attended` (B, A, T, D)."""
        output = layer.out(attended.transpose(1, 2).flatten(2))
        if layer.after_attention is not None:
            output = layer.after_attention(output)
        states = states + output
        gate, up = layer.gate_up(layer.feed_forward_norm(states)).chunk(2, dim=-1)
        output = layer.down(gelu(gate, approximate="tanh") * up)
        if layer.after_feed_forward is not None:
            output = layer.after_feed_forward(output)
        return states + output

    def _logits(self, states: Tensor) -> Tensor:
        """Return logits (B * T, V) of the last layer's states (B, T, C)."""
        logits = self._head(self._norm(states)).flatten(0, 1)
        cap = self._logit_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap
