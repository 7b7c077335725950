"""Florence-2's decoder: BART encodes image features and prompt, and decodes the answer.

Equivalent to transformers' BartModel (models/bart/modeling_bart.py: post-norm, positions start at
2): one pass of the text encoder, then decode steps over cache slots. Prompts are padded on the
right; every mask hides the padding, so that it never changes an answer. Knows no tasks. Shapes: B
batch, S image and prompt (of a decode step: prefixes), W rows of a prefix, P positions attended to,
T tokens of a row, C hidden, A heads, D head size, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu

from runners.kv_cache.memory import DecoderShape, KeyValueCache, Slots
from runners.kv_cache.slot_cache import SlotCache, TokenPlaces
from runners.models.layers import (
    LayerNorm,
    Linear,
    as_bias,
    attend,
    merge_heads,
    split_heads,
    split_parts,
)
from runners.models.weights import DecoderCheckpoint, DecoderWeights
from runners.tokens.text import CheckpointText

_POSITION_OFFSET = 2  # transformers, BartLearnedPositionalEmbedding
_NORM_EPSILON = 1e-5  # torch's default, which BART keeps


@dataclass(frozen=True, slots=True)
class BartAttentionMetadata:
    """Positions and masks (runners/models/layers.py) of a decode step, shared by all layers."""

    places: TokenPlaces
    rows: Tensor  # (B, 1) of the current tokens in the cache
    # (B, 1, T, P) of self-attention, over the longest sequence with the current tokens
    decoded_mask: Tensor
    prefix_mask: Tensor  # (S, 1, 1, P) of cross-attention, over the longest image and prompt


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Self-attention; one layer computes queries, keys and values."""

    qkv: Linear
    out: Linear
    norm: LayerNorm
    head_size: int

    @classmethod
    def of(cls, layer: DecoderWeights, head_size: int) -> "SelfAttention":
        attention = layer.at("self_attn")
        qkv = attention.linear("q_proj", "k_proj", "v_proj")
        norm = layer.layer_norm("self_attn_layer_norm", _NORM_EPSILON)
        return cls(qkv, attention.linear("out_proj"), norm, head_size)

    def encode(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        parts = split_parts(self.qkv(hidden_states), 3, self.head_size)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        return self._finish(hidden_states, queries, keys, values, mask)

    def decode(
        self,
        index: int,
        hidden_states: Tensor,
        metadata: BartAttentionMetadata,
        cache: KeyValueCache,
    ) -> Tensor:
        """Return the states (B, T, C) after attention to the tokens decoded so far."""
        places = metadata.places
        qkv = split_parts(self.qkv(hidden_states), 3, self.head_size)  # (B, T, 3, A, D)
        cache.append(index, metadata.rows, places.positions, qkv[:, :, 1:])
        keys, values = cache.read(index, places.slots, places.length)
        queries = qkv[:, :, 0].transpose(1, 2)
        return self._finish(hidden_states, queries, keys, values, metadata.decoded_mask)

    def _finish(
        self, hidden_states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        attended = merge_heads(attend(queries, keys, values, mask, self.head_size**-0.5))
        return self.norm(hidden_states + self.out(attended))


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """Cross-attention from the decoder to the output of the text encoder."""

    q: Linear
    kv: Linear
    out: Linear
    norm: LayerNorm
    head_size: int

    @classmethod
    def of(cls, layer: DecoderWeights, head_size: int) -> "CrossAttention":
        attention = layer.at("encoder_attn")
        norm = layer.layer_norm("encoder_attn_layer_norm", _NORM_EPSILON)
        q = attention.linear("q_proj")
        kv = attention.linear("k_proj", "v_proj")
        return cls(q, kv, attention.linear("out_proj"), norm, head_size)

    def decode(
        self,
        index: int,
        hidden_states: Tensor,
        metadata: BartAttentionMetadata,
        cache: KeyValueCache,
    ) -> Tensor:
        """Return the states (B, T, C) after attention to image and prompt."""
        reads = metadata.places.prefixes
        assert reads is not None
        keys, values = cache.read(index, reads.prefixes, metadata.prefix_mask.shape[-1])
        queries = split_heads(self.q(hidden_states), self.head_size)
        # (S, W, A, T, D): the rows of a prefix are positions of one product
        if reads.rows is not None:
            queries = queries[reads.rows].transpose(1, 2).flatten(2, 3)
        attended = attend(queries, keys, values, metadata.prefix_mask, self.head_size**-0.5)
        if reads.places is not None:
            shape = (*attended.shape[:2], -1, hidden_states.shape[1], self.head_size)
            by_place = attended.view(shape).transpose(1, 2).flatten(0, 1)
            attended = by_place[reads.places]  # (B, A, T, D)
        return self.norm(hidden_states + self.out(merge_heads(attended)))


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
        return self.norm(hidden_states + self.down(gelu(self.up(hidden_states))))


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One layer of the text encoder."""

    attention: SelfAttention
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer of the decoder."""

    attention: SelfAttention
    cross: CrossAttention
    feed_forward: FeedForward


class Bart:
    """Embeddings, encoder and decoder of a BartModel.

    `config` has the values of transformers' BartConfig.
    """

    def __init__(self, config: Mapping[str, Any], weights: DecoderWeights) -> None:
        self.embeddings = weights.tensor("shared.weight")  # (V, C)
        self.head_size: int = config["d_model"] // config["decoder_attention_heads"]
        encoder = weights.at("encoder")
        decoder = weights.at("decoder")
        self._head = weights.output_head(self.embeddings)
        self._encoder_positions = encoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._decoder_positions = decoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._encoder_norm = encoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._decoder_norm = decoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        size = self.head_size
        self._encoder_layers = encoder.layers(
            config["encoder_layers"],
            lambda _, layer: EncoderLayer(SelfAttention.of(layer, size), FeedForward.of(layer)),
        )
        self._decoder_layers = decoder.layers(
            config["decoder_layers"],
            lambda _, layer: DecoderLayer(
                SelfAttention.of(layer, size), CrossAttention.of(layer, size), FeedForward.of(layer)
            ),
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.embeddings[token_ids]

    def encode(self, inputs_embeds: Tensor, prefix_mask: Tensor) -> list[Tensor]:
        """Return each decoder layer's cross-attention keys and values (B, S, 2, A, D) of
        `inputs_embeds` (B, S, C).
        """
        positions = self._encoder_positions[: inputs_embeds.shape[1]]
        states = self._encoder_norm(inputs_embeds + positions)
        for layer in self._encoder_layers:
            states = layer.feed_forward(layer.attention.encode(states, prefix_mask))
        keys_and_values: list[Tensor] = []
        for decoder_layer in self._decoder_layers:
            kv = decoder_layer.cross.kv(states)
            keys_and_values.append(split_parts(kv, 2, self.head_size))
        return keys_and_values

    def decode_step(
        self,
        metadata: BartAttentionMetadata,
        self_attention: KeyValueCache,
        cross_attention: KeyValueCache,
    ) -> Tensor:
        places = metadata.places
        embeds = self.embeddings[places.token_ids] + self._decoder_positions[places.positions]
        states = self._decoder_norm(embeds)  # (B, T, C)
        for index, layer in enumerate(self._decoder_layers):
            states = layer.attention.decode(index, states, metadata, self_attention)
            states = layer.cross.decode(index, states, metadata, cross_attention)
            states = layer.feed_forward(states)
        return self._head(states).flatten(0, 1)


class Florence2Decoder:
    """A Florence-2 checkpoint without its vision encoder."""

    def __init__(self, checkpoint: DecoderCheckpoint) -> None:
        config = checkpoint.config
        text = config["text_config"]
        bart = Bart(text, checkpoint.weights)
        self._bart = bart
        self._device = bart.embeddings.device
        rules = checkpoint.rules
        self.rules = rules
        # `<s> prompt </s>`; source: transformers, models/florence2/processing_florence2.py
        self.text = CheckpointText(
            checkpoint.tokenizer,
            checkpoint.constraints,
            pad_token_id=text["pad_token_id"],
            start_ids=(text["bos_token_id"],),
            end_ids=(text["eos_token_id"],),
            labels_start_bare=True,
        )
        self.shape = DecoderShape(
            num_layers=text["decoder_layers"],
            num_heads=text["decoder_attention_heads"],
            num_positions=text["max_position_embeddings"],
            head_size=bart.head_size,
            num_tokens=len(bart.embeddings),
            dtype=bart.embeddings.dtype,
            device=self._device,
            has_prefixes=True,
        )
        self.adapters = checkpoint.adapters
        self.can_draft = True
        self.start_token_id: int | None = rules.decoder_start_token_id
        if self.start_token_id is None:
            self.start_token_id = text["decoder_start_token_id"]

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._bart.embed(token_ids)

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,  # noqa: ARG002  # those of `first`
        first: TokenPlaces | None,
    ) -> Tensor:
        """Encode image features and prompts, then decode start tokens and drafts."""
        prefix_mask = _is_before(num_prefix_tokens[:, None], embeds.shape[1])
        encoded = self._bart.encode(embeds, as_bias(prefix_mask, embeds.dtype))
        assert cache.prefixes is not None
        assert first is not None
        assert first.prefixes is not None
        for layer, keys_and_values in enumerate(encoded):
            cache.prefixes.memory.write_prefix(layer, first.prefixes.prefixes, keys_and_values)
        return self.decode_step(cache, first)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        prefixes = cache.prefixes
        assert prefixes is not None
        assert places.prefixes is not None
        # one position of a free slot is unmasked: an empty mask would give NaN
        ends = prefixes.lengths.on_device[places.prefixes.prefixes, None].clamp(min=1)
        decoded_mask = _is_before(places.positions + 1, places.length)
        prefix_mask = _is_before(ends, places.prefix_length)
        biases = (as_bias(mask, self.shape.dtype) for mask in (decoded_mask, prefix_mask))
        metadata = BartAttentionMetadata(places, places.rows(), *biases)
        return self._bart.decode_step(metadata, cache.self_attention, prefixes.memory)


def _is_before(ends: Tensor, length: int) -> Tensor:
    """Return the mask (B, 1, T, length) of the positions before `ends` (B, T)."""
    return (torch.arange(length, device=ends.device) < ends[..., None])[:, None]
