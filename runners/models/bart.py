"""BART as Florence-2 runs it, over slots of a key-value cache: text encoder once, decoder step by step.

Weights and results are those of transformers' BartModel (models/bart/modeling_bart.py: norms after each addition,
positions from 2).
Shapes: B batch, S read tokens, C hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu

from runners.decoder.kv_cache import KeyValueCache
from runners.models.layers import LayerNorm, Linear, attend, merge_heads, split_heads
from runners.models.weights import DecoderWeights

_POSITION_OFFSET = 2  # transformers, BartLearnedPositionalEmbedding
_NORM_EPSILON = 1e-5  # torch's default, which BART keeps


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Queries, keys and values of one input."""

    qkv: Linear
    out: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, layer: DecoderWeights) -> "SelfAttention":
        """Read the weights of a layer."""
        attention = layer.at("self_attn")
        qkv = attention.linear("q_proj", "k_proj", "v_proj")
        return cls(qkv, attention.linear("out_proj"), layer.layer_norm("self_attn_layer_norm", _NORM_EPSILON))


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """Queries of the decoder, keys and values of the encoder."""

    q: Linear
    kv: Linear
    out: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, layer: DecoderWeights) -> "CrossAttention":
        """Read the weights of a layer."""
        attention, norm = layer.at("encoder_attn"), layer.layer_norm("encoder_attn_layer_norm", _NORM_EPSILON)
        return cls(attention.linear("q_proj"), attention.linear("k_proj", "v_proj"), attention.linear("out_proj"), norm)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Two layers with GELU between."""

    up: Linear
    down: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, layer: DecoderWeights) -> "FeedForward":
        """Read the weights of a layer."""
        return cls(layer.linear("fc1"), layer.linear("fc2"), layer.layer_norm("final_layer_norm", _NORM_EPSILON))

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the states after the layer (…, C)."""
        return self.norm(hidden_states + self.down(gelu(self.up(hidden_states))))


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One layer of the text encoder."""

    attention: SelfAttention
    feed_forward: FeedForward

    def __call__(self, hidden_states: Tensor, is_visible: Tensor, head_size: int) -> Tensor:
        """Return the states after the layer (B, S, C)."""
        q, k, v = (split_heads(x, head_size) for x in self.attention.qkv(hidden_states).chunk(3, dim=-1))
        attended = merge_heads(attend(q, k, v, is_visible, head_size**-0.5))
        return self.feed_forward(self.attention.norm(hidden_states + self.attention.out(attended)))


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer of the decoder."""

    attention: SelfAttention
    cross: CrossAttention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class BartStep:
    """What every layer of one decode step needs, made once."""

    slots: slice
    positions: Tensor  # (B,) of the token that is read
    num_positions: int  # of the longest sequence, this token included
    is_visible: Tensor  # (B, 1, 1, num_positions)
    num_read: int  # of the longest image and prompt
    is_read: Tensor  # (B, 1, 1, num_read)


class Bart:
    """Embeddings, encoder and decoder of a BartModel."""

    def __init__(self, config: Any, weights: DecoderWeights) -> None:  # transformers' BartConfig
        self.embeddings = weights.tensor("shared.weight")  # (V, C)
        self.head_size: int = config.d_model // config.decoder_attention_heads
        encoder, decoder = weights.at("encoder"), weights.at("decoder")
        self._head = weights.output_head(self.embeddings)
        self._encoder_positions = encoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._decoder_positions = decoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._encoder_norm = encoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._decoder_norm = decoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._encoder_layers = [
            EncoderLayer(SelfAttention.of(layer), FeedForward.of(layer))
            for layer in (encoder.at(f"layers.{index}") for index in range(config.encoder_layers))
        ]
        self._decoder_layers = [
            DecoderLayer(SelfAttention.of(layer), CrossAttention.of(layer), FeedForward.of(layer))
            for layer in (decoder.at(f"layers.{index}") for index in range(config.decoder_layers))
        ]

    def encode(self, inputs_embeds: Tensor, is_read: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each decoder layer's keys and values (B, A, S, D) of `inputs_embeds` (B, S, C)."""
        hidden_states = self._encoder_norm(inputs_embeds + self._encoder_positions[: inputs_embeds.shape[1]])
        for layer in self._encoder_layers:
            hidden_states = layer(hidden_states, is_read, self.head_size)
        pairs = [layer.cross.kv(hidden_states).chunk(2, dim=-1) for layer in self._decoder_layers]
        return [(split_heads(keys, self.head_size), split_heads(values, self.head_size)) for keys, values in pairs]

    def step(self, token_ids: Tensor, step: BartStep, written: KeyValueCache, read: KeyValueCache) -> Tensor:
        """Read one token of each slot of the step (B,), append it to `written`; return logits (B, V)."""
        embeds = self.embeddings[token_ids] + self._decoder_positions[step.positions]
        hidden_states = self._decoder_norm(embeds)[:, None]  # (B, 1, C)
        for index, layer in enumerate(self._decoder_layers):
            hidden_states = self._attend_written(index, layer.attention, hidden_states, step, written)
            hidden_states = self._attend_read(index, layer.cross, hidden_states, step, read)
            hidden_states = layer.feed_forward(hidden_states)
        return self._head(hidden_states[:, 0])

    def _attend_written(
        self, index: int, attention: SelfAttention, hidden_states: Tensor, step: BartStep, written: KeyValueCache
    ) -> Tensor:
        q, k, v = (split_heads(x, self.head_size) for x in attention.qkv(hidden_states).chunk(3, dim=-1))
        written.append(index, step.slots, step.positions, k[:, :, 0], v[:, :, 0])
        keys, values = written.read(index, step.slots, step.num_positions)
        attended = merge_heads(attend(q, keys, values, step.is_visible, self.head_size**-0.5))
        return attention.norm(hidden_states + attention.out(attended))

    def _attend_read(
        self, index: int, cross: CrossAttention, hidden_states: Tensor, step: BartStep, read: KeyValueCache
    ) -> Tensor:
        keys, values = read.read(index, step.slots, step.num_read)
        queries = split_heads(cross.q(hidden_states), self.head_size)
        attended = merge_heads(attend(queries, keys, values, step.is_read, self.head_size**-0.5))
        return cross.norm(hidden_states + cross.out(attended))
