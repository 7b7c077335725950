"""Florence-2's decoder: BART's text encoder over image features and prompt, BART's decoder for the
answer.

Prompts are padded on the right; every mask hides the padding, so that it never changes an answer.
Knows no tasks. Shapes: B batch, N image tokens, S image and prompt (padded), C hidden, V
vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BartConfig

from runners.cuda_graphs.buckets import buckets, shared_prefixes
from runners.cuda_graphs.conditions import MAX_BEAMS
from runners.cuda_graphs.graphs import Capture, CudaGraphs, capture_cuda_graph
from runners.decoder.drafts import DraftedPass, PromptWords, TokenPlaces
from runners.decoder.kv_cache import CacheShape, KeyValueCache, SlotLengths
from runners.decoder.prefixes import PrefixReads, PrefixTable
from runners.decoder.sequences import SequenceRequest
from runners.models.adapters import Adapters, copy_adapters
from runners.models.bart import Bart, BartAttentionMetadata
from runners.models.layers import as_bias, prefix_lengths, stack_requests
from runners.models.weights import DecoderWeights
from runners.tokens.constraints import Constraints
from runners.tokens.errors import SequenceTooLong
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import PromptTokenizer, Segments, TextStream
from wire.artifacts.manifest import DECODER_FILE, TOKENIZER_FILE, Precision, read_config


@dataclass(slots=True)
class Florence2Cache:
    """The state of all sequences, by slot; of image and prompt, by the prefix that a slot reads."""

    prefixes: PrefixTable
    cross_attention: KeyValueCache  # of image and prompt, by prefix
    self_attention: KeyValueCache  # of start token and answer
    num_prefix_tokens: SlotLengths  # image and prompt, by prefix
    num_decoded_tokens: SlotLengths  # start token and answer
    adapters: list[str | None]  # of each slot
    graphs: CudaGraphs | None = None  # on a GPU only


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
        self.rules = rules
        self._adapters = adapters or Adapters()
        self.constraints = constraints
        self.pad_token_id: int = config["text_config"]["pad_token_id"]
        self._bart = bart
        self._device = bart.embeddings.device
        self._tokenizer = tokenizer
        self.can_draft = self._device.type != "cuda"
        self.can_draft_first = self.can_draft
        self._bos_token_id: int = config["text_config"]["bos_token_id"]
        self._eos_token_id: int = config["text_config"]["eos_token_id"]
        start_token_id = rules.decoder_start_token_id
        if start_token_id is None:
            start_token_id = config["text_config"]["decoder_start_token_id"]
        self._start_token_id: int = start_token_id
        self._num_layers: int = config["text_config"]["decoder_layers"]
        self._num_heads: int = config["text_config"]["decoder_attention_heads"]
        self._max_positions: int = config["text_config"]["max_position_embeddings"]

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
        weights = weights_of.open(folder / DECODER_FILE, precision, device, adapters)
        bart = Bart(BartConfig(**config["text_config"]), weights)
        tokenizer_file = folder / TOKENIZER_FILE
        rules = GenerationRules.load(folder)
        constraints = Constraints.load(tokenizer_file, rules.eos_token_ids)
        return cls(bart, PromptTokenizer.load(tokenizer_file), constraints, rules, config, adapters)

    @property
    def adapter_keys(self) -> frozenset[str]:
        """The adapters that requests may name."""
        return self._adapters.keys

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return `<s> prompt </s>`; source: transformers,
        models/florence2/processing_florence2.py.
        """
        return (self._bos_token_id, *self._tokenizer.encode(segments), self._eos_token_id)

    def prompt_words(self, prompt_ids: Sequence[int]) -> PromptWords:
        """Return the tokens of a prompt as a source of drafts.

        A label starts without the space before a word.
        """
        words = prompt_ids[1:-1]  # without <s> and </s>
        return PromptWords(words, [self._tokenizer.bare_id(token_id) for token_id in words])

    def text_stream(self) -> TextStream:
        return self._tokenizer.text_stream()

    def max_new_tokens(self, num_prefix_tokens: int) -> int:
        """Return the decoder's positions: in BART, image and prompt take positions of the encoder
        only.
        """
        limit = self._max_positions
        if num_prefix_tokens > limit:
            raise SequenceTooLong(
                f"image and prompt have {num_prefix_tokens} tokens; at most {limit} are allowed"
            )
        return limit

    def limit_positions(self, max_positions: int) -> None:
        """Limit the positions of a sequence, and with them the size of the slots of new caches."""
        self._max_positions = min(self._max_positions, max_positions)

    def new_cache(self, num_slots: int) -> Florence2Cache:
        """Allocate `num_slots` slots, each for a sequence of the maximum length."""
        dtype = self._bart.embeddings.dtype
        shape = self._cache_shape(num_slots)
        cross, own = (KeyValueCache(shape, dtype, self._device) for _ in range(2))
        prefixes, decoded = (SlotLengths(num_slots, self._device) for _ in range(2))
        table = PrefixTable(num_slots, self._device)
        cache = Florence2Cache(table, cross, own, prefixes, decoded, [None] * num_slots)
        if self._device.type == "cuda":
            cache.graphs = self.cuda_graphs(cache, num_slots, capture_cuda_graph)
        return cache

    def slot_bytes(self) -> int:
        """Return the memory of a slot: its part of both caches."""
        return 2 * self._cache_shape(1).num_bytes(self._bart.embeddings.dtype)

    def _cache_shape(self, num_slots: int) -> CacheShape:
        """Return the shape of the keys of image and prompt, which is that of the answer's too."""
        return CacheShape(
            self._num_layers, num_slots, self._num_heads, self._max_positions, self._bart.head_size
        )

    @property
    def num_tokens(self) -> int:
        """The size of the vocabulary."""
        return len(self._bart.embeddings)

    def cuda_graphs(self, cache: Florence2Cache, num_slots: int, capture: Capture) -> CudaGraphs:
        """Capture the graphs of the decode steps of `cache`, which read all positions of image and
        prompt.
        """

        def step(token_ids: Tensor, length: int, num_prefixes: int) -> Tensor:
            slots = slice(0, len(token_ids))
            positions = cache.num_decoded_tokens.on_device[slots, None].clamp(max=length - 1)
            places = TokenPlaces(token_ids[:, None], slots, positions, length)
            reads = PrefixReads(slots)
            if num_prefixes:
                reads = cache.prefixes.grouped(len(token_ids), num_prefixes, MAX_BEAMS)
            return self._step(cache, places, reads, self._max_positions)

        graphs = CudaGraphs(step, num_slots, self._max_positions, self._device, capture)
        shared = shared_prefixes(num_slots, self.rules.num_beams)
        graphs.capture_all(
            buckets(num_slots, self._max_positions, shared=shared), self.rules.eos_token_ids
        )
        return graphs

    def prefill(
        self,
        cache: Florence2Cache,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        """Run the text encoder over image features and prompts, and the decoder over start tokens
        and drafts.

        The sequences take the slots from `first_slot` on. Return the logits (B * T, V) of each next
        token.
        """
        inputs = stack_requests(
            requests, self.pad_token_id, self._device, self._bart.embeddings.dtype
        )
        inputs_embeds = torch.cat(
            [inputs.image_features, self._bart.embeddings[inputs.prompt_ids]], dim=1
        )
        is_prefix = _is_before(inputs.num_prefix_tokens[:, None], inputs_embeds.shape[1])
        slots = slice(first_slot, first_slot + len(requests))
        numbers = range(first_slot, first_slot + len(requests))
        cache.adapters[slots] = [request.adapter for request in requests]
        self._adapters.select(cache.adapters[slots])
        prefix_mask = as_bias(is_prefix, inputs_embeds.dtype)
        prefixes = cache.prefixes.add(numbers)
        for layer, keys_and_values in enumerate(self._bart.encode(inputs_embeds, prefix_mask)):
            cache.cross_attention.write_prefix(
                layer, slice(prefixes.start, prefixes.stop), keys_and_values
            )
        cache.num_prefix_tokens.set(prefixes, prefix_lengths(requests))
        cache.num_decoded_tokens.set(numbers, [0] * len(requests))
        start = [self._start_token_id] * len(requests)
        return self.decode_drafts(
            cache, DraftedPass(first_slot, start, drafts or [()] * len(requests))
        )

    def decode_step(self, cache: Florence2Cache, token_ids: Tensor) -> Tensor:
        """Process `token_ids` (B,) of slots 0 to B - 1.

        Return the logits (B, V) of each next token.
        """
        slots = slice(0, len(token_ids))
        decoded = cache.num_decoded_tokens
        prefixes = cache.prefixes
        length = max(decoded.of(range(len(token_ids)))) + 1
        is_shared = prefixes.own(slots) != slots
        # Captured steps have no adapters, and room for so many beams.
        if (
            cache.graphs is None
            or any(cache.adapters[slots])
            or (is_shared and prefixes.width > MAX_BEAMS)
        ):
            positions = decoded.on_device[slots, None]
            places = TokenPlaces(token_ids.to(self._device)[:, None], slots, positions, length)
            reads = prefixes.reads(slots)
            num_prefix_tokens = cache.num_prefix_tokens.of(range(prefixes.num_prefixes))
            logits = self._step(cache, places, reads, max(num_prefix_tokens))
        else:
            logits = cache.graphs.logits(
                token_ids, length, prefixes.num_prefixes if is_shared else 0
            )
        decoded.increment(len(token_ids))
        return logits

    def recorded(self, cache: Florence2Cache) -> CudaGraphs | None:
        """Return the recorded steps of `cache`, None where steps run eagerly."""
        return cache.graphs

    def decode_drafts(self, cache: Florence2Cache, tokens: DraftedPass) -> Tensor:
        """Process certain tokens and drafts; return the logits (B * T, V) after each of them."""
        places = tokens.places(cache.num_decoded_tokens)
        num_prefix_tokens = cache.num_prefix_tokens.of(
            cache.prefixes.of(slot) for slot in tokens.slots
        )
        logits = self._step(
            cache, places, cache.prefixes.reads(places.slots), max(num_prefix_tokens)
        )
        cache.num_decoded_tokens.add(tokens.slots, [1] * len(tokens.slots))
        return logits

    def accept(
        self, cache: Florence2Cache, slots: Sequence[int], num_tokens: Sequence[int]
    ) -> None:
        """Keep the first drafted tokens of `slots`; the next pass overwrites the others."""
        cache.num_decoded_tokens.add(slots, num_tokens)

    def roll_back(self, cache: Florence2Cache, slot: int) -> None:
        """Remove the last token of a slot, which a superfluous pass has added."""
        last = self._max_positions - 1  # where the token of a full slot is
        position = min(cache.num_decoded_tokens.decrement(slot), last)
        cache.self_attention.clear(slot, slice(position, position + 1))

    def clear(self, cache: Florence2Cache, slot: int) -> None:
        cache.cross_attention.clear(cache.prefixes.of(slot))
        cache.self_attention.clear(slot)

    def add_beams(self, cache: Florence2Cache, source: int, targets: Sequence[int]) -> None:
        """Copy the slot `source` to `targets`; all read the same image and prompt."""
        cache.prefixes.share(source, targets)
        self._copy(cache, [source] * len(targets), targets)

    def free(self, cache: Florence2Cache, slot: int, last: int) -> None:
        """Free a slot and, if it is the only one that reads its image and prompt, their memory."""
        moved = cache.prefixes.release(slot)
        if moved is not None:
            source = [moved[0]]
            target = [moved[1]]
            cache.cross_attention.copy(
                source, target, slice(0, *cache.num_prefix_tokens.of(source))
            )
            cache.num_prefix_tokens.copy(source, target)
        if slot != last:
            cache.prefixes.move(last, slot)
            self._copy(cache, [last], [slot])

    def _copy(self, cache: Florence2Cache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy what slots have of their own, pairwise."""
        self.reorder(cache, sources, targets)
        cache.num_decoded_tokens.copy(sources, targets)
        copy_adapters(cache.adapters, sources, targets)

    def reorder(
        self,
        cache: Florence2Cache,
        sources: Sequence[int],
        targets: Sequence[int],
        on_device: Tensor | None = None,
    ) -> None:
        """Copy the generated tokens of beams to others of the same sequences, pairwise."""
        decoded = slice(0, max(cache.num_decoded_tokens.of(sources)))
        cache.self_attention.copy(sources, targets, decoded, on_device)

    def _step(
        self, cache: Florence2Cache, places: TokenPlaces, reads: PrefixReads, num_prefix_tokens: int
    ) -> Tensor:
        """Process tokens; return the logits (B * T, V) of each next token.

        `num_prefix_tokens`: of the longest image and prompt. Of a free slot the first prefix
        position is unmasked, as a mask without any position would give NaN.
        """
        ends = cache.num_prefix_tokens.on_device[reads.prefixes, None].clamp(min=1)
        masks = _is_before(places.positions + 1, places.length), _is_before(ends, num_prefix_tokens)
        dtype = self._bart.embeddings.dtype
        metadata = BartAttentionMetadata(
            places, places.rows(), reads, *(as_bias(mask, dtype) for mask in masks)
        )
        self._adapters.select(cache.adapters[places.slots])
        return self._bart.decode_step(metadata, cache.self_attention, cache.cross_attention)


def _is_before(ends: Tensor, length: int) -> Tensor:
    """Return the mask (B, 1, T, length) of the positions before `ends` (B, T)."""
    return (torch.arange(length, device=ends.device) < ends[..., None])[:, None]
