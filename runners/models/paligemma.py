"""PaliGemma's decoder: Gemma (1 or 2) over image features, prompt and answer.

Attention over image and prompt is bidirectional; positions start at 1. Prompts are padded on the
right; every mask hides the padding, and the answer overwrites it in the cache, so that it never
changes an answer. Knows no tasks. Shapes: B batch, S image and prompt (padded), T tokens of a row,
C hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from runners.decoder.sequences import SequenceRequest
from runners.kv_cache.memory import Slots
from runners.kv_cache.shape import DecoderShape
from runners.kv_cache.slot_cache import SlotCache, TokenPlaces
from runners.models.adapters import Adapters
from runners.models.gemma import Gemma, GemmaAttentionMetadata
from runners.models.layers import stack_requests
from runners.tokens.constraints import Constraints
from runners.tokens.prompts import CheckpointText
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import PromptTokenizer

_FIRST_POSITION = 1


class PaliGemmaDecoder:
    """A PaliGemma checkpoint without its vision encoder."""

    def __init__(
        self,
        gemma: Gemma,
        tokenizer: PromptTokenizer,
        constraints: Constraints,
        rules: GenerationRules,
        config: dict[str, Any],
        adapters: Adapters | None = None,
    ) -> None:
        text = config["text_config"]
        vision = config["vision_config"]
        self._gemma = gemma
        self._device = gemma.device
        self.rules = rules
        # `<bos> prompt \\n`; source: transformers, models/paligemma/processing_paligemma.py
        self.text = CheckpointText(
            tokenizer,
            constraints,
            pad_token_id=config["pad_token_id"],
            start_ids=(config["bos_token_id"],),
            end_ids=tuple(tokenizer.encode([("\n", False)])),
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
        self.adapters = adapters or Adapters()
        self.can_draft = True
        self.can_draft_first = False  # an answer never starts with a token that is known

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._gemma.embed(token_ids)

    def prefill(
        self,
        cache: SlotCache,
        requests: Sequence[SequenceRequest],
        slots: range,
        drafts: Sequence[Sequence[int]],  # noqa: ARG002  # there are none
    ) -> Tensor:
        """Run Gemma over image features and prompts.

        Return the logits (B, V) of each first token. A sliding window does not apply within the
        prefix: transformers joins the prefix block to the window's mask.
        """
        inputs = stack_requests(requests, self.embed, self._device)
        where = slice(slots.start, slots.stop)
        return self._prefill(cache, inputs.embeds, inputs.num_prefix_tokens, where)

    def prefill_fixed(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Tensor,
        prefixes: Tensor,  # noqa: ARG002  # there are none
    ) -> Tensor:
        """Like `prefill`, of embedded images and prompts, without a value of the host."""
        return self._prefill(cache, embeds, num_prefix_tokens, slots)

    def _prefill(
        self, cache: SlotCache, embeds: Tensor, num_prefix_tokens: Tensor, slots: Slots
    ) -> Tensor:
        positions = torch.arange(embeds.shape[1], device=self._device)
        is_visible = positions < num_prefix_tokens[:, None]
        mask = self._gemma.mask(is_visible[:, None, None])
        rotation = self._gemma.rotation(positions[None] + _FIRST_POSITION)
        metadata = GemmaAttentionMetadata(*rotation, mask, mask)
        last_positions = num_prefix_tokens - 1
        states = self._gemma.prefill(embeds, metadata, slots, cache.self_attention, last_positions)
        return self._gemma.logits(states)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        """Process tokens; return the logits (B * T, V) of each next token."""
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
