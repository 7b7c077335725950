"""Florence-2's decoder: BART encodes image features and prompt, and decodes the answer.

Prompts are padded on the right; every mask hides the padding, so that it never changes an answer.
Knows no tasks. Shapes: B batch, S image and prompt (padded), T tokens of a row, C hidden, V
vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from runners.decoder.sequences import SequenceRequest
from runners.kv_cache.prefixes import PrefixReads
from runners.kv_cache.shape import DecoderShape
from runners.kv_cache.slot_cache import SlotCache, TokenPlaces
from runners.models.adapters import Adapters
from runners.models.bart import Bart, BartAttentionMetadata
from runners.models.layers import as_bias, stack_requests
from runners.tokens.constraints import Constraints
from runners.tokens.prompts import CheckpointText
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import PromptTokenizer


class Florence2Decoder:
    """A Florence-2 checkpoint without its vision encoder."""

    def __init__(
        self,
        bart: Bart,
        tokenizer: PromptTokenizer,
        constraints: Constraints,
        rules: GenerationRules,
        config: dict[str, Any],
        adapters: Adapters | None = None,
    ) -> None:
        text = config["text_config"]
        self._bart = bart
        self._device = bart.embeddings.device
        self.rules = rules
        # `<s> prompt </s>`; source: transformers, models/florence2/processing_florence2.py
        self.text = CheckpointText(
            tokenizer,
            constraints,
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
        self.adapters = adapters or Adapters()
        self.can_draft = True
        self.can_draft_first = True  # after the start token
        start = rules.decoder_start_token_id
        self._start_token_id: int = text["decoder_start_token_id"] if start is None else start

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._bart.embed(token_ids)

    def prefill(
        self,
        cache: SlotCache,
        requests: Sequence[SequenceRequest],
        slots: range,
        drafts: Sequence[Sequence[int]],
    ) -> Tensor:
        """Encode image features and prompts, then decode start tokens and drafts."""
        inputs = stack_requests(requests, self.embed, self._device)
        tokens = [[self._start_token_id, *draft] for draft in drafts]
        first = cache.places(tokens, slots.start)
        logits = self._prefill(cache, inputs.embeds, inputs.num_prefix_tokens, first)
        cache.grow(slots)
        return logits

    def prefill_fixed(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Tensor,
        prefixes: Tensor,
    ) -> Tensor:
        """Like `prefill`, of embedded images and prompts, without a value of the host."""
        tokens = torch.full_like(slots, self._start_token_id)[:, None]
        positions = torch.zeros_like(tokens)
        reads = PrefixReads(prefixes)
        first = TokenPlaces(tokens, slots, positions, 1, reads, embeds.shape[1])
        return self._prefill(cache, embeds, num_prefix_tokens, first)

    def _prefill(
        self, cache: SlotCache, embeds: Tensor, num_prefix_tokens: Tensor, first: TokenPlaces
    ) -> Tensor:
        prefix_mask = _is_before(num_prefix_tokens[:, None], embeds.shape[1])
        encoded = self._bart.encode(embeds, as_bias(prefix_mask, embeds.dtype))
        assert cache.prefixes is not None
        assert first.prefixes is not None
        for layer, keys_and_values in enumerate(encoded):
            cache.prefixes.memory.write_prefix(layer, first.prefixes.prefixes, keys_and_values)
        return self.decode_step(cache, first)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        """Process tokens; return the logits (B * T, V) of each next token."""
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
