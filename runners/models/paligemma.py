"""PaliGemma's decoder: Gemma (1 or 2) over image features, prompt and answer.

Attention over image and prompt is bidirectional; positions start at 1. Prompts are padded on the
right; every mask hides the padding, and the answer overwrites it in the cache, so that it never
changes an answer. Knows no tasks. Shapes: B batch, N image tokens, S image and prompt (padded), C
hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Gemma2Config, GemmaConfig

from runners.cuda_graphs.buckets import buckets
from runners.cuda_graphs.graphs import Capture, CudaGraphs, capture_cuda_graph
from runners.decoder.drafts import DraftedPass, PromptWords, TokenPlaces
from runners.decoder.kv_cache import CacheShape, KeyValueCache, SlotLengths
from runners.decoder.sequences import SequenceRequest
from runners.models.adapters import Adapters, copy_adapters
from runners.models.gemma import Gemma, GemmaAttentionMetadata
from runners.models.layers import prefix_lengths, stack_requests
from runners.models.weights import DecoderWeights
from runners.tokens.constraints import Constraints
from runners.tokens.errors import SequenceTooLong
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import PromptTokenizer, Segments, TextStream
from wire.artifacts.manifest import DECODER_FILE, TOKENIZER_FILE, Precision, read_config

_FIRST_POSITION = 1
_CONFIGS: dict[str, type[GemmaConfig] | type[Gemma2Config]] = {
    "gemma": GemmaConfig,  # PaliGemma
    "gemma2": Gemma2Config,  # PaliGemma 2
}


@dataclass(slots=True)
class PaliGemmaCache:
    """The state of all sequences, by slot."""

    self_attention: KeyValueCache  # of image, prompt and answer
    num_prefix_tokens: SlotLengths  # image and prompt
    num_tokens: SlotLengths  # image, prompt and answer
    adapters: list[str | None]  # of each slot
    graphs: CudaGraphs | None = None  # on a GPU only


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
        self.rules = rules
        self._adapters = adapters or Adapters()
        self.constraints = constraints
        self.pad_token_id: int = config["pad_token_id"]
        self._gemma = gemma
        self._device = gemma.device
        self._tokenizer = tokenizer
        self.can_draft = self._device.type != "cuda"
        self.can_draft_first = False  # an answer never starts with a token that is known
        self._bos_token_id: int = config["bos_token_id"]
        self._num_layers: int = config["text_config"]["num_hidden_layers"]
        self._max_positions: int = config["text_config"]["max_position_embeddings"]
        vision = config["vision_config"]
        self._num_image_tokens: int = (vision["image_size"] // vision["patch_size"]) ** 2

    @classmethod
    def load(
        cls,
        folder: Path,
        precision: Precision,
        device: str,
        weights_of: type[DecoderWeights],
        adapters: Adapters | None,
    ) -> Self:
        """Load the decoder of an artifact folder onto `device`."""
        config = read_config(folder)
        text_config = _CONFIGS[config["text_config"]["model_type"]](**config["text_config"])
        gemma = Gemma(
            text_config, weights_of.open(folder / DECODER_FILE, precision, device, adapters)
        )
        tokenizer_file = folder / TOKENIZER_FILE
        rules = GenerationRules.load(folder)
        constraints = Constraints.load(tokenizer_file, rules.eos_token_ids)
        return cls(
            gemma, PromptTokenizer.load(tokenizer_file), constraints, rules, config, adapters
        )

    @property
    def adapter_keys(self) -> frozenset[str]:
        """The adapters that requests may name."""
        return self._adapters.keys

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        r"""Return `<bos> prompt \n`; source: transformers,
        models/paligemma/processing_paligemma.py.
        """
        return (self._bos_token_id, *self._tokenizer.encode([*segments, ("\n", False)]))

    def prompt_words(self, prompt_ids: Sequence[int]) -> PromptWords:
        """Return the tokens of a prompt as a source of drafts.

        A label starts with a space, as other words do.
        """
        words = prompt_ids[1:-1]  # without <bos> and the line break
        return PromptWords(words, words)

    def text_stream(self) -> TextStream:
        return self._tokenizer.text_stream()

    def max_new_tokens(self, num_prefix_tokens: int) -> int:
        """Return the positions left: in Gemma, image, prompt and answer share one range of
        positions.
        """
        limit = self._max_positions - 1  # leaves one for the answer
        if num_prefix_tokens > limit:
            raise SequenceTooLong(
                f"image and prompt have {num_prefix_tokens} tokens; at most {limit} are allowed"
            )
        return self._max_positions - num_prefix_tokens

    def limit_positions(self, max_positions: int) -> None:
        """Limit the positions of a sequence, and with them the size of the slots of new caches."""
        self._max_positions = min(self._max_positions, max_positions)

    def new_cache(self, num_slots: int) -> PaliGemmaCache:
        """Allocate `num_slots` slots, each for a sequence of the maximum length."""
        own = KeyValueCache(self._cache_shape(num_slots), self._gemma.dtype, self._device)
        prefixes, lengths = (SlotLengths(num_slots, self._device) for _ in range(2))
        cache = PaliGemmaCache(own, prefixes, lengths, [None] * num_slots)
        if self._device.type == "cuda":
            cache.graphs = self.cuda_graphs(cache, num_slots, capture_cuda_graph)
        return cache

    def slot_bytes(self) -> int:
        """Return the memory of a slot."""
        return self._cache_shape(1).num_bytes(self._gemma.dtype)

    def _cache_shape(self, num_slots: int) -> CacheShape:
        gemma = self._gemma
        return CacheShape(
            self._num_layers,
            num_slots,
            gemma.num_key_value_heads,
            self._max_positions,
            gemma.head_size,
        )

    @property
    def num_tokens(self) -> int:
        """The size of the vocabulary."""
        return self._gemma.num_tokens

    def cuda_graphs(self, cache: PaliGemmaCache, num_slots: int, capture: Capture) -> CudaGraphs:
        """Capture the graphs of the decode steps of `cache`."""

        def step(token_ids: Tensor, length: int, _num_prefixes: int) -> Tensor:
            slots = slice(0, len(token_ids))
            positions = cache.num_tokens.on_device[slots, None].clamp(max=length - 1)
            return self._step(cache, TokenPlaces(token_ids[:, None], slots, positions, length))

        graphs = CudaGraphs(step, num_slots, self._max_positions, self._device, capture)
        shapes = buckets(num_slots, self._max_positions, self._num_image_tokens)
        graphs.capture_all(shapes, self.rules.eos_token_ids)
        return graphs

    def prefill(
        self,
        cache: PaliGemmaCache,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        # Florence-2's: no answer here starts with a known token
        drafts: Sequence[Sequence[int]] = (),  # noqa: ARG002
    ) -> Tensor:
        """Run Gemma over image features and prompts.

        The sequences take the slots from `first_slot` on. Return the logits (B, V) of each first
        token. A sliding window does not apply within the prefix: transformers joins the prefix
        block to the window's mask.
        """
        inputs = stack_requests(requests, self.pad_token_id, self._device, self._gemma.dtype)
        inputs_embeds = torch.cat(
            [inputs.image_features, self._gemma.embed(inputs.prompt_ids)], dim=1
        )
        cache_positions = torch.arange(inputs_embeds.shape[1], device=self._device)
        mask = self._gemma.mask(
            (cache_positions < inputs.num_prefix_tokens[:, None])[:, None, None]
        )
        rotation = self._gemma.rotation(cache_positions[None] + _FIRST_POSITION)
        metadata = GemmaAttentionMetadata(*rotation, mask, mask)
        slots = slice(first_slot, first_slot + len(requests))
        numbers = range(first_slot, first_slot + len(requests))
        cache.adapters[slots] = [request.adapter for request in requests]
        self._adapters.select(cache.adapters[slots])
        last_positions = inputs.num_prefix_tokens - 1
        hidden_states = self._gemma.prefill(
            inputs_embeds, metadata, slots, cache.self_attention, last_positions
        )
        for lengths in (cache.num_tokens, cache.num_prefix_tokens):
            lengths.set(numbers, prefix_lengths(requests))
        return self._gemma.logits(hidden_states[:, 0])

    def decode_step(self, cache: PaliGemmaCache, token_ids: Tensor) -> Tensor:
        """Process `token_ids` (B,) of slots 0 to B - 1.

        Return the logits (B, V) of each next token.
        """
        slots = slice(0, len(token_ids))
        lengths = cache.num_tokens
        length = max(lengths.of(range(len(token_ids)))) + 1
        if cache.graphs is None or any(cache.adapters[slots]):  # captured steps have no adapters
            positions = lengths.on_device[slots, None]
            logits = self._step(
                cache, TokenPlaces(token_ids.to(self._device)[:, None], slots, positions, length)
            )
        else:
            logits = cache.graphs.logits(token_ids, length)
        lengths.increment(len(token_ids))
        return logits

    def recorded(self, cache: PaliGemmaCache) -> CudaGraphs | None:
        """Return the recorded steps of `cache`, None where steps run eagerly."""
        return cache.graphs

    def decode_drafts(self, cache: PaliGemmaCache, tokens: DraftedPass) -> Tensor:
        """Process certain tokens and drafts; return the logits (B * T, V) after each of them."""
        logits = self._step(cache, tokens.places(cache.num_tokens))
        cache.num_tokens.add(tokens.slots, [1] * len(tokens.slots))
        return logits

    def accept(
        self, cache: PaliGemmaCache, slots: Sequence[int], num_tokens: Sequence[int]
    ) -> None:
        """Keep the first drafted tokens of `slots`; the next pass overwrites the others."""
        cache.num_tokens.add(slots, num_tokens)

    def roll_back(self, cache: PaliGemmaCache, slot: int) -> None:
        """Remove the last token of a slot, which a superfluous pass has added."""
        last = self._max_positions - 1  # where the token of a full slot is
        position = min(cache.num_tokens.decrement(slot), last)
        cache.self_attention.clear(slot, slice(position, position + 1))

    def clear(self, cache: PaliGemmaCache, slot: int) -> None:
        cache.self_attention.clear(slot)

    def add_beams(self, cache: PaliGemmaCache, source: int, targets: Sequence[int]) -> None:
        """Copy the slot `source` to `targets`: image, prompt and answer are positions of one
        attention.
        """
        self._copy(cache, [source] * len(targets), targets)

    def free(self, cache: PaliGemmaCache, slot: int, last: int) -> None:
        """Free a slot; the sequence in `last` moves there."""
        if slot != last:
            self._copy(cache, [last], [slot])

    def _copy(self, cache: PaliGemmaCache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy slots, pairwise."""
        cache.self_attention.copy(sources, targets, slice(0, max(cache.num_tokens.of(sources))))
        for lengths in (cache.num_prefix_tokens, cache.num_tokens):
            lengths.copy(sources, targets)
        copy_adapters(cache.adapters, sources, targets)

    def reorder(
        self,
        cache: PaliGemmaCache,
        sources: Sequence[int],
        targets: Sequence[int],
        on_device: Tensor | None = None,
    ) -> None:
        """Copy the generated tokens of beams to others of the same sequences, pairwise."""
        generated = slice(
            min(cache.num_prefix_tokens.of(sources)), max(cache.num_tokens.of(sources))
        )
        cache.self_attention.copy(sources, targets, generated, on_device)

    def _step(self, cache: PaliGemmaCache, places: TokenPlaces) -> Tensor:
        """Process tokens; return the logits (B * T, V) of each next token."""
        hidden_states = self._gemma.embed(places.token_ids)  # (B, T, C)
        metadata = self._step_metadata(places.positions, places.length)
        self._adapters.select(cache.adapters[places.slots])
        states = self._gemma.decode_step(hidden_states, metadata, places, cache.self_attention)
        return self._gemma.logits(states.flatten(0, 1))

    def _step_metadata(self, cache_positions: Tensor, num_tokens: int) -> GemmaAttentionMetadata:
        """Return the metadata of a step over `num_tokens` positions, for tokens at
        `cache_positions` (B, T).
        """
        # (B, T, P)
        distance = cache_positions[..., None] - torch.arange(
            num_tokens, device=cache_positions.device
        )
        is_visible = distance >= 0
        window = self._gemma.sliding_window
        mask = self._gemma.mask(is_visible[:, None])
        window_mask = (
            mask
            if window is None
            else self._gemma.mask((is_visible & (distance < window))[:, None])
        )
        return GemmaAttentionMetadata(
            *self._gemma.rotation(cache_positions + _FIRST_POSITION), mask, window_mask
        )
