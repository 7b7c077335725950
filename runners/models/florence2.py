"""Florence-2's decoder: BART encodes image features and prompt, and decodes the answer.

Equivalent to transformers' BartModel (models/bart/modeling_bart.py: post-norm, positions start at
2): one pass of the text encoder, then decode steps over cache slots. Prompts are padded on the
right; every mask hides the padding, so that it never changes an answer. Knows no tasks. Shapes: B
batch, S image and prompt (of a decode step: prefixes), W rows of a prefix, P positions attended to,
T tokens of a row, C hidden, A heads, D head size, V vocabulary.
"""

import torch
from torch import Tensor, unflatten
from torch.nn.functional import gelu, scaled_dot_product_attention

from runners.kv_cache import DecoderShape, PrefixReads, SlotCache, Slots, TokenPlaces
from runners.models.layers import as_bias
from runners.models.weights import DecoderCheckpoint, DecoderWeights
from runners.tokens.text import CheckpointText

_POSITION_OFFSET = 2  # transformers, BartLearnedPositionalEmbedding
_NORM_EPSILON = 1e-5  # torch's default, which BART keeps


class BartLayer:
    """A layer of the text encoder: self-attention and feed-forward."""

    def __init__(self, weights: DecoderWeights) -> None:
        attention = weights.at("self_attn")
        self.qkv = attention.linear("q_proj", "k_proj", "v_proj")
        self.out = attention.linear("out_proj")
        self.norm = weights.layer_norm("self_attn_layer_norm", _NORM_EPSILON)
        self.up = weights.linear("fc1")
        self.down = weights.linear("fc2")
        self.final_norm = weights.layer_norm("final_layer_norm", _NORM_EPSILON)


class BartDecoderLayer(BartLayer):
    """A layer of the decoder, which also attends to the output of the text encoder."""

    def __init__(self, weights: DecoderWeights) -> None:
        super().__init__(weights)
        attention = weights.at("encoder_attn")
        self.cross_q = attention.linear("q_proj")
        self.cross_kv = attention.linear("k_proj", "v_proj")
        self.cross_out = attention.linear("out_proj")
        self.cross_norm = weights.layer_norm("encoder_attn_layer_norm", _NORM_EPSILON)


class Florence2Decoder:
    """A Florence-2 checkpoint without its vision encoder: a BartModel over cache slots."""

    def __init__(self, checkpoint: DecoderCheckpoint) -> None:
        config = checkpoint.config["text_config"]  # the values of transformers' BartConfig
        weights = checkpoint.weights
        self.embeddings = weights.tensor("shared.weight")  # (V, C)
        self.head_size: int = config["d_model"] // config["decoder_attention_heads"]
        encoder = weights.at("encoder")
        decoder = weights.at("decoder")
        self._head = weights.output_head(self.embeddings)
        self._encoder_positions = encoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._decoder_positions = decoder.tensor("embed_positions.weight")[_POSITION_OFFSET:]
        self._encoder_norm = encoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._decoder_norm = decoder.layer_norm("layernorm_embedding", _NORM_EPSILON)
        self._encoder_layers = encoder.layers(
            config["encoder_layers"], lambda _, layer: BartLayer(layer)
        )
        self._decoder_layers = decoder.layers(
            config["decoder_layers"], lambda _, layer: BartDecoderLayer(layer)
        )
        self.rules = checkpoint.rules
        # `<s> prompt </s>`; source: transformers, models/florence2/processing_florence2.py
        self.text = CheckpointText(
            checkpoint.tokenizer,
            checkpoint.constraints,
            pad_token_id=config["pad_token_id"],
            start_ids=(config["bos_token_id"],),
            end_ids=(config["eos_token_id"],),
            bare_ids=checkpoint.tokenizer.bare_ids(),
        )
        self.shape = DecoderShape(
            num_layers=config["decoder_layers"],
            num_heads=config["decoder_attention_heads"],
            num_positions=config["max_position_embeddings"],
            head_size=self.head_size,
            num_tokens=len(self.embeddings),
            dtype=self.embeddings.dtype,
            device=self.embeddings.device,
            has_prefixes=True,
        )
        self.adapters = checkpoint.adapters
        self.start_token_id: int | None = self.rules.decoder_start_token_id
        if self.start_token_id is None:
            self.start_token_id = config["decoder_start_token_id"]

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.embeddings[token_ids]

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,  # noqa: ARG002  # those of `first`
        first: TokenPlaces | None,
    ) -> Tensor:
        """Encode image features and prompts, then decode start tokens and drafts."""
        assert cache.prefixes is not None
        assert first is not None
        assert first.prefixes is not None
        positions = torch.arange(embeds.shape[1], device=embeds.device)
        is_visible = positions < num_prefix_tokens[:, None]
        mask = as_bias(is_visible[:, None, None], embeds.dtype)
        states = self._encoder_norm(embeds + self._encoder_positions[: embeds.shape[1]])
        for layer in self._encoder_layers:
            parts = unflatten(layer.qkv(states), -1, (3, -1, self.head_size))
            queries, keys, values = parts.permute(2, 0, 3, 1, 4)
            attended = scaled_dot_product_attention(queries, keys, values, mask)
            states = layer.norm(states + layer.out(attended.transpose(1, 2).flatten(2)))
            states = layer.final_norm(states + layer.down(gelu(layer.up(states))))
        for index, decoder_layer in enumerate(self._decoder_layers):
            kv = unflatten(decoder_layer.cross_kv(states), -1, (2, -1, self.head_size))
            cache.prefixes.memory.write_prefix(index, first.prefixes.prefixes, kv)
        return self.decode_step(cache, first)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        prefixes = cache.prefixes
        reads = places.prefixes
        assert prefixes is not None
        assert reads is not None
        # one position of a free slot is unmasked: an empty mask would give NaN
        ends = prefixes.lengths.on_device[reads.prefixes, None].clamp(min=1)
        dtype = self.embeddings.dtype
        decoded = torch.arange(places.length, device=ends.device) <= places.positions[..., None]
        decoded_mask = as_bias(decoded[:, None], dtype)  # (B, 1, T, P)
        is_visible = torch.arange(reads.length, device=ends.device) < ends
        prefix_mask = as_bias(is_visible[:, None, None], dtype)
        embeds = self.embeddings[places.token_ids] + self._decoder_positions[places.positions]
        states = self._decoder_norm(embeds)  # (B, T, C)
        for index, layer in enumerate(self._decoder_layers):
            qkv = unflatten(layer.qkv(states), -1, (3, -1, self.head_size))  # (B, T, 3, A, D)
            keys, values = cache.self_attention.extend(index, places, qkv[:, :, 1:])
            queries = qkv[:, :, 0].transpose(1, 2)
            attended = scaled_dot_product_attention(queries, keys, values, decoded_mask)
            states = layer.norm(states + layer.out(attended.transpose(1, 2).flatten(2)))
            queries = unflatten(layer.cross_q(states), -1, (-1, self.head_size)).transpose(1, 2)
            keys, values = prefixes.memory.read(index, reads.prefixes, reads.length)
            if reads.rows is None:
                attended = scaled_dot_product_attention(queries, keys, values, prefix_mask)
            else:
                attended = _attend_shared(queries, keys, values, prefix_mask, reads)
            states = layer.cross_norm(states + layer.cross_out(attended.transpose(1, 2).flatten(2)))
            states = layer.final_norm(states + layer.down(gelu(layer.up(states))))
        return self._head(states).flatten(0, 1)


def _attend_shared(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, reads: PrefixReads
) -> Tensor:
    """Return (B, A, T, D): attention to image and prompt; the rows of a prefix are one product."""
    assert reads.places is not None
    by_prefix = queries[reads.rows].transpose(1, 2).flatten(2, 3)  # (S, A, W * T, D)
    attended = scaled_dot_product_attention(by_prefix, keys, values, mask)
    by_place = unflatten(attended, 2, (-1, queries.shape[2])).transpose(1, 2).flatten(0, 1)
    return by_place[reads.places]
