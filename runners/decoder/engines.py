"""The engines: each runs the passes of a decoder in one way, over slots that it owns.

    EagerEngine    of a CPU: every pass in its own shape, with drafts and adapters
    GraphEngine    of a GPU: captured passes and choices (runners/decoder/captured_passes.py), the
                   next pass launched before the host reads the tokens of this one

A draft is a likely continuation of an answer, read in the same pass as its last token: a token that
the rules force, or words of the prompt where the grammar asks for them. Each is kept only if it is
the token that the model chooses after those before it: answers are the same as without. Source:
greedy speculative decoding (Leviathan et al., arXiv 2211.17192) with drafts from the prompt
(github.com/apoorvumang/prompt-lookup-decoding).

Invariants:
- a pass is counted in its slots when it is launched, a draft when the batch accepts it;
- a captured choice puts next tokens and moves of beams into the pool on the device, where the next
  pass reads them;
- passes with many beams, or with an adapter without a place in the pool, run eagerly, and none of
  these is launched ahead.

Shapes: B slots, T tokens of a slot in a pass, R rows, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from runners.decoder.captured_passes import (
    Capture,
    CapturedPrefills,
    CapturedSteps,
    FixedPrefill,
    StepShape,
    capture_cuda_graph,
    prefill_shapes,
    step_shapes,
)
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import LiveSequence, SequenceRequest
from runners.kv_cache import PrefixReads, SlotCache, TokenPlaces, array_into, to_device
from runners.tokens.choice import MAX_BEAMS, Chosen, NextInputs, RowConditions, choose_tokens

# tokens that take as long as a pass without any, measured at commit 290efa6
_PASS_COST = 4
# limit of slots in use: with more, drafts of equal length rarely coincide
MAX_SLOTS = 8


def rows_of(drafts: Sequence[Sequence[int]]) -> list[range]:
    """Return the rows of each slot among the B * T of a pass over `drafts`."""
    width = 1 + max(map(len, drafts))
    return [range(slot * width, slot * width + 1 + len(draft)) for slot, draft in enumerate(drafts)]


def slots_from(first_slot: int, requests: Sequence[SequenceRequest]) -> list[Sequence[int]]:
    following = count(first_slot + len(requests))
    return [
        [first, *islice(following, request.num_beams - 1)]
        for first, request in enumerate(requests, first_slot)
    ]


def stack_requests(
    requests: Sequence[SequenceRequest], embed: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return images and prompts (B, S, C), padded on the right, and their lengths (B,)."""
    tokens: list[tuple[int, int, int]] = []  # id, row and position of each token of a prompt
    for row, request in enumerate(requests):
        start = len(request.image_features)
        for position, token_id in enumerate(request.prompt_ids, start):
            tokens.append((token_id, row, position))
    token_ids, rows, positions = to_device(tokens, device, torch.long).view(-1, 3).T
    prompts = embed(token_ids)
    lengths = [request.num_prefix_tokens for request in requests]
    embeds = prompts.new_zeros(len(requests), max(lengths), prompts.shape[-1])
    for row_embeds, request in zip(embeds, requests, strict=True):
        row_embeds[: len(request.image_features)] = request.image_features
    embeds[rows, positions] = prompts
    return embeds, to_device(lengths, device)


class EagerEngine:
    """The engine of a CPU; a launched pass is its logits (R, V)."""

    def __init__(self, decoder: Decoder, num_slots: int) -> None:
        self._decoder = decoder
        self.cache = SlotCache(decoder.shape, num_slots)

    def drafts(
        self, sequences: Sequence[LiveSequence], is_first: bool = False
    ) -> list[Sequence[int]]:
        """Return a draft for each of `sequences`, cut to the length at which a pass reads most
        tokens for its time; `is_first`: read in a prefill.
        """
        can_read = not is_first or self._decoder.start_token_id is not None
        if not can_read or len(sequences) > MAX_SLOTS:
            return [()] * len(sequences)
        drafts = [sequence.propose() for sequence in sequences]
        lengths = list(map(len, drafts))
        best_length = 0
        best_rate = 0.0
        for length in range(1 + max(lengths)):
            num_tokens = len(drafts) + sum(min(proposed, length) for proposed in lengths)
            rate = num_tokens / (_PASS_COST + len(drafts) * (1 + length))
            if rate > best_rate:
                best_length = length
                best_rate = rate
        return [draft[:best_length] for draft in drafts]

    def captures(self, request: SequenceRequest) -> bool:  # noqa: ARG002
        return False

    def prefill(
        self,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        """Process images and prompts into free slots: each sequence's first, then beams."""
        decoder = self._decoder
        slots_of = slots_from(first_slot, requests)
        adapters = list(map(attrgetter("adapter"), requests))
        num_tokens = [request.num_prefix_tokens for request in requests]
        claimed = chain.from_iterable(self.cache.claim(slots_of, num_tokens, adapters))
        self.cache.write_claimed(to_device(list(claimed), decoder.shape.device))
        if decoder.adapters.keys or decoder.adapters.rows:  # those of one that is gone, too
            decoder.adapters.select(adapters)
        embeds, lengths = stack_requests(requests, decoder.embed, decoder.shape.device)
        first = None
        start = decoder.start_token_id
        if start is not None:
            drafts = drafts or [()] * len(requests)
            first = self.cache.places([[start, *draft] for draft in drafts], first_slot)
        last_slot = first_slot + len(requests)
        logits = decoder.prefill(self.cache, embeds, lengths, slice(first_slot, last_slot), first)
        if first is not None:
            self.cache.num_tokens.increment(
                range(first_slot, 1 + max(chain.from_iterable(slots_of)))
            )
        self.cache.add_beams(slots_of)
        return logits

    def decode(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Process the next token of each slot from 0 on, and its draft after it."""
        places = self.cache.places(tokens)
        if self._decoder.adapters.keys or self._decoder.adapters.rows:
            self._decoder.adapters.select(self.cache.adapters[: len(tokens)])
        logits = self._decoder.decode_step(self.cache, places)
        self.cache.num_tokens.increment(range(len(tokens)))
        return logits

    def choose(
        self,
        launched: Tensor,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        following: Callable[[], NextInputs] | None = None,  # noqa: ARG002
        is_first: bool = False,  # noqa: ARG002
    ) -> Chosen:
        """Return the choices of `sequences`, the rows of each, as `choose_tokens` does.

        An engine that launches the next pass ahead calls `following`, which is None if that pass
        would be superfluous. `is_first`: after a prefill.
        """
        return Chosen(choose_tokens(launched, conditions, sequences))


class GraphEngine:
    """The engine of a device that replays captured operations."""

    def __init__(
        self, decoder: Decoder, num_slots: int, capture: Capture = capture_cuda_graph
    ) -> None:
        shape = decoder.shape
        self._decoder = decoder
        self._eager = EagerEngine(decoder, num_slots)
        self.cache = self._eager.cache
        # places of the adapters of slots: an input of captured steps
        self._places = torch.zeros(num_slots, dtype=torch.long, device=shape.device)
        self._loaded_places: list[int] = []
        has_adapters = decoder.adapters.pool is not None
        steps = step_shapes(shape, num_slots, decoder.rules.num_beams, has_adapters)
        self.graphs = CapturedSteps(self._step, steps, num_slots, shape.device, capture)
        self.graphs.capture_all(decoder.rules.eos_token_ids)
        shapes = prefill_shapes(shape, num_slots, has_adapters)
        any_token = torch.zeros(1, dtype=torch.long, device=shape.device)
        hidden_size = decoder.embed(any_token).shape[-1]
        num_beams = min(MAX_BEAMS, num_slots)
        self.prefills = CapturedPrefills(self._prefill, shapes, hidden_size, num_beams)
        if self.graphs.can_choose:
            self.prefills.capture_all(capture, shape.device)

    @contextmanager
    def _adapters_at(self, places: Tensor | None) -> Iterator[None]:
        """Select the adapters of a captured pass's rows, if it has some."""
        adapters = self._decoder.adapters
        adapters.select(())
        if places is not None and adapters.pool is not None:
            adapters.is_other = places[:, None] != adapters.pool.owners
        try:
            yield
        finally:
            adapters.is_other = None  # an eager pass has other rows

    def _step(self, token_ids: Tensor, shape: StepShape) -> Tensor:
        places = self.cache.fixed_places(
            token_ids, shape.length, shape.num_prefixes, MAX_BEAMS, shape.prefix_length
        )
        with self._adapters_at(self._places[: len(token_ids)] if shape.has_adapters else None):
            return self._decoder.decode_step(self.cache, places)

    def drafts(
        self,
        sequences: Sequence[LiveSequence],
        is_first: bool = False,  # noqa: ARG002
    ) -> list[Sequence[int]]:
        """Return none: captured passes read one token of each slot."""
        return [()] * len(sequences)

    def captures(self, request: SequenceRequest) -> bool:
        """Return True if a prefill of such requests is replayed."""
        places = self._adapter_places([request.adapter])
        return places is not None and self.prefills.hold([request], places)

    def prefill(
        self,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        adapters = list(map(attrgetter("adapter"), requests))
        places = self._adapter_places(adapters)
        if places is None or not self.prefills.hold(requests, places):
            logits = self._eager.prefill(requests, first_slot, drafts)
            return self.graphs.store(logits, is_first=True)
        slots_of = slots_from(first_slot, requests)
        lengths = [request.num_prefix_tokens for request in requests]
        claimed = self.cache.claim(slots_of, lengths, adapters)
        self.prefills.run(requests, claimed, places)
        if self.cache.prefixes is None:  # not captured: every prefill would copy whole prompts
            self.cache.add_beams(slots_of)
        else:  # the start token is in the slots
            self.cache.num_tokens.increment(
                range(first_slot, 1 + max(chain.from_iterable(slots_of)))
            )
        return self.graphs.first_logits[: len(requests)]

    def _prefill(self, inputs: FixedPrefill) -> Tensor:
        self.cache.write_claimed(inputs.claimed.flatten(0, 1))
        slots, _, prefixes, _, _ = inputs.claimed[:, 0].T
        prompts = self._decoder.embed(inputs.token_ids.clamp(min=0))
        is_image = (inputs.token_ids < 0)[..., None]
        embeds = torch.where(is_image, inputs.features.to(prompts.dtype), prompts)
        lengths = inputs.num_prefix_tokens
        first = None
        start = self._decoder.start_token_id
        if start is not None:
            tokens = torch.full_like(slots, start)[:, None]
            reads = PrefixReads(prefixes, embeds.shape[1])
            positions = torch.zeros_like(tokens)
            first = TokenPlaces(tokens, slots, positions, 1, reads)
        with self._adapters_at(inputs.adapter_places):
            logits = self._decoder.prefill(self.cache, embeds, lengths, slots, first)
        if self.cache.prefixes is not None:
            targets = inputs.claimed[..., 0]
            sources = slots[:, None].expand_as(targets)
            moves = torch.stack([sources.flatten(), targets.flatten()])
            self.cache.self_attention.copy_pairs(moves, slice(0, 1))  # of first tokens
        self.graphs.first_logits.index_copy_(0, inputs.rows, logits)
        return logits

    def decode(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        if not self._is_captured(len(tokens)):
            return self.graphs.store(self._eager.decode(tokens))
        self.graphs.load([token_id for (token_id,) in tokens])
        return self.launch(len(tokens))

    def choose(
        self,
        launched: Tensor,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        following: Callable[[], NextInputs] | None = None,
        is_first: bool = False,
    ) -> Chosen:
        inputs = following() if following is not None else None
        if inputs is None or not self._is_captured(len(inputs.rows)):
            return self.graphs.choose(launched, conditions, sequences, is_first=is_first)
        look_ahead = partial(self.look_ahead, inputs)
        return self.graphs.choose(launched, conditions, sequences, inputs, look_ahead)

    def look_ahead(self, inputs: NextInputs) -> Tensor:
        """Launch the next pass with the tokens and beam moves that the device is choosing."""
        if moved := list(inputs.parents):
            self.cache.reorder(moved, moved, self.graphs.moves(len(moved)))
        return self.launch(len(inputs.rows))

    def launch(self, num_slots: int) -> Tensor:
        slots = range(num_slots)
        longest = max(self.cache.num_tokens.on_host[:num_slots])
        length = min(1 + longest, self._decoder.shape.num_positions)
        num_prefixes, _ = self.cache.shared_prefixes(num_slots)
        prefixes = self.cache.prefixes
        prefix_length = 0
        if prefixes is not None:
            read = prefixes.of_slot[:num_slots]
            prefix_length = max(prefixes.lengths.on_host[prefix] for prefix in read)
        has_adapters = any(self.cache.adapters[:num_slots])
        if has_adapters:
            places = self._adapter_places(self.cache.adapters[:num_slots])
            if places and places != self._loaded_places:
                array_into(self._places[:num_slots], np.array(places))
                self._loaded_places = places
        step = StepShape(num_slots, length, num_prefixes, prefix_length, has_adapters)
        logits = self.graphs.run(step)
        self.cache.num_tokens.increment(slots)
        return logits

    def _adapter_places(self, adapters: Sequence[str | None]) -> list[int] | None:
        """Return the place of each row's adapter in the pool, 0 for none; None if one has none."""
        if not any(adapters):
            return [0] * len(adapters)
        pool = self._decoder.adapters.pool
        return None if pool is None else pool.places(adapters)

    def _is_captured(self, num_slots: int) -> bool:
        _, num_beams = self.cache.shared_prefixes(num_slots)
        places = self._adapter_places(self.cache.adapters[:num_slots])
        return num_beams <= MAX_BEAMS and places is not None


Engine = EagerEngine | GraphEngine
NewEngine = Callable[[Decoder, int], Engine]  # arguments: a decoder and its number of slots


def new_engine(decoder: Decoder, num_slots: int) -> Engine:
    is_cuda = decoder.shape.device.type == "cuda"
    return GraphEngine(decoder, num_slots) if is_cuda else EagerEngine(decoder, num_slots)
