"""Florence-2's BART: one pass of the text encoder, then decode steps over cache slots.

Equivalent to transformers' BartModel (models/bart/modeling_bart.py: post-norm, positions start at
2). Shapes: B batch, S image and prompt (of a decode step: prefixes), W rows of a prefix, P
positions attended to, T tokens of a step, C hidden, A heads, D head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu

from runners.kv_cache.memory import KeyValueCache
from runners.kv_cache.slot_cache import TokenPlaces
from runners.models.layers import LayerNorm, attend, merge_heads, split_heads, split_parts
from runners.models.linear import Linear
from runners.models.weights import DecoderWeights

_POSITION_OFFSET = 2  # transformers, BartLearnedPositionalEmbedding
_NORM_EPSILON = 1e-5  # torch's default, which BART keeps


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Self-attention; one layer computes queries, keys and values."""

    qkv: Linear
    out: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, layer: DecoderWeights) -> "SelfAttention":
        attention = layer.at("self_attn")
        qkv = attention.linear("q_proj", "k_proj", "v_proj")
        return cls(
            qkv,
            attention.linear("out_proj"),
            layer.layer_norm("self_attn_layer_norm", _NORM_EPSILON),
        )


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """Cross-attention from the decoder to the output of the text encoder."""

    q: Linear
    kv: Linear
    out: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, layer: DecoderWeights) -> "CrossAttention":
        attention = layer.at("encoder_attn")
        norm = layer.layer_norm("encoder_attn_layer_norm", _NORM_EPSILON)
        return cls(
            attention.linear("q_proj"),
            attention.linear("k_proj", "v_proj"),
            attention.linear("out_proj"),
            norm,
        )


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The feed-forward block: two layers with GELU between them."""

    up: Linear
    down: Linear
    norm: LayerNorm

    @classmethod
    def of(cls, layer: DecoderWeights) -> "FeedForward":
        return cls(
            layer.linear("fc1"),
            layer.linear("fc2"),
            layer.layer_norm("final_layer_norm", _NORM_EPSILON),
        )

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """Return the states (…, C) after the block."""
        return self.norm(hidden_states + self.down(gelu(self.up(hidden_states))))


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One layer of the text encoder."""

    attention: SelfAttention
    feed_forward: FeedForward

    def __call__(self, hidden_states: Tensor, mask: Tensor, head_size: int) -> Tensor:
        """Return the states (B, S, C) after the layer."""
        q, k, v = split_parts(self.attention.qkv(hidden_states), 3, head_size).permute(
            2, 0, 3, 1, 4
        )
        attended = merge_heads(attend(q, k, v, mask, head_size**-0.5))
        return self.feed_forward(self.attention.norm(hidden_states + self.attention.out(attended)))


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer of the decoder."""

    attention: SelfAttention
    cross: CrossAttention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class BartAttentionMetadata:
    """Positions and masks (runners/models/layers.py) of a decode step, shared by all layers."""

    places: TokenPlaces
    rows: Tensor  # (B, 1) of the current tokens in the cache
    # (B, 1, T, P) of self-attention, over the longest sequence with the current tokens
    decoded_mask: Tensor
    prefix_mask: Tensor  # (S, 1, 1, P) of cross-attention, over the longest image and prompt


class Bart:
    """Embeddings, encoder and decoder of a BartModel."""

    def __init__(self, config: Any, weights: DecoderWeights) -> None:  # transformers' BartConfig
        self.embeddings = weights.tensor("shared.weight")  # (V, C)
        self.head_size: int = config.d_model // config.decoder_attention_heads
        encoder = weights.at("encoder")
        decoder = weights.at("decoder")
        self._head = weights.output_head(self.embeddings)
        self._encoder_positions = encoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._decoder_positions = decoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._encoder_norm = encoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._decoder_norm = decoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._encoder_layers = encoder.layers(
            config.encoder_layers,
            lambda _, layer: EncoderLayer(SelfAttention.of(layer), FeedForward.of(layer)),
        )
        self._decoder_layers = decoder.layers(
            config.decoder_layers,
            lambda _, layer: DecoderLayer(
                SelfAttention.of(layer), CrossAttention.of(layer), FeedForward.of(layer)
            ),
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings (…, C)."""
        return self.embeddings[token_ids]

    def encode(self, inputs_embeds: Tensor, prefix_mask: Tensor) -> list[Tensor]:
        """Return each decoder layer's cross-attention keys and values (B, S, 2, A, D) of
        `inputs_embeds` (B, S, C).
        """
        hidden_states = self._encoder_norm(
            inputs_embeds + self._encoder_positions[: inputs_embeds.shape[1]]
        )
        for layer in self._encoder_layers:
            hidden_states = layer(hidden_states, prefix_mask, self.head_size)
        return [
            split_parts(layer.cross.kv(hidden_states), 2, self.head_size)
            for layer in self._decoder_layers
        ]

    def decode_step(
        self,
        metadata: BartAttentionMetadata,
        self_attention: KeyValueCache,
        cross_attention: KeyValueCache,
    ) -> Tensor:
        """Process tokens and append them to `self_attention`; return the next logits (B * T, V)."""
        places = metadata.places
        embeds = self.embeddings[places.token_ids] + self._decoder_positions[places.positions]
        hidden_states = self._decoder_norm(embeds)  # (B, T, C)
        for index, layer in enumerate(self._decoder_layers):
            hidden_states = self._attend_to_decoded(
                index, layer.attention, hidden_states, metadata, self_attention
            )
            hidden_states = self._attend_to_prefix(
                index, layer.cross, hidden_states, metadata, cross_attention
            )
            hidden_states = layer.feed_forward(hidden_states)
        return self._head(hidden_states).flatten(0, 1)

    def _attend_to_decoded(
        self,
        index: int,
        attention: SelfAttention,
        hidden_states: Tensor,
        metadata: BartAttentionMetadata,
        cache: KeyValueCache,
    ) -> Tensor:
        places = metadata.places
        qkv = split_parts(attention.qkv(hidden_states), 3, self.head_size)  # (B, T, 3, A, D)
        cache.append(index, metadata.rows, places.positions, qkv[:, :, 1:])
        keys, values = cache.read(index, places.slots, places.length)
        queries = qkv[:, :, 0].transpose(1, 2)
        attended = merge_heads(
            attend(queries, keys, values, metadata.decoded_mask, self.head_size**-0.5)
        )
        return attention.norm(hidden_states + attention.out(attended))

    def _attend_to_prefix(
        self,
        index: int,
        cross: CrossAttention,
        hidden_states: Tensor,
        metadata: BartAttentionMetadata,
        cache: KeyValueCache,
    ) -> Tensor:
        reads = metadata.places.prefixes
        assert reads is not None
        keys, values = cache.read(index, reads.prefixes, metadata.prefix_mask.shape[-1])
        queries = split_heads(cross.q(hidden_states), self.head_size)
        # (S, W, A, T, D): the rows of a prefix are positions of one product
        if reads.rows is not None:
            queries = queries[reads.rows].transpose(1, 2).flatten(2, 3)
        attended = attend(queries, keys, values, metadata.prefix_mask, self.head_size**-0.5)
        if reads.places is not None:
            by_place = attended.view(
                *attended.shape[:2], -1, *hidden_states.shape[1:2], self.head_size
            )
            attended = by_place.transpose(1, 2).flatten(0, 1)[reads.places]  # (B, A, T, D)
        return cross.norm(hidden_states + cross.out(merge_heads(attended)))
