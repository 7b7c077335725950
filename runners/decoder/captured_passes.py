"""Steps, choices and prefills in fixed shapes: CUDA graphs, captured once and replayed.

A graph launches the hundreds of small kernels of a pass at once, for the shapes and the memory that
it was captured with. A pass runs in the smallest captured shape that holds it; the excess consists
of free slots and masked positions. All are captured before the model is ready: a capture stops
every kernel of the process. A pool on the device holds what passes and choices exchange.

    load        tokens of the host into the pool: 1 transfer
    run         a graph for each `StepShape`: a pass over the pool's tokens
    choose      conditions to the device: 1 transfer; a graph for each number of rows and kind,
                which puts the next tokens and the moves of beams into the pool; results to the
                host: 1 transfer, which alone waits, after the next pass has been launched
    prefills    admitted sequences run in parts of 8, 4, 2 and 1, so that no row is padded, those
                with adapters apart; images with their prompts are padded to a multiple of 16
                positions. A part takes 1 transfer of its numbers, 1 copy of each sequence's
                features, and 1 replay. Longer prompts, adapters without a place in the pool and too
                many beams are left to the eager prefill

Invariants:
- a replay computes what it was captured with: every input is in memory at a fixed address;
- the logits of a prefill have memory apart: a pass launched ahead may still wait for its choice;
- what failed to be captured runs eagerly.

Shapes: B slots or rows, R rows, S positions of image and prompt, M moves, W slots of a sequence, C
hidden, V vocabulary.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from runners.decoder.sequences import SequenceRequest
from runners.kv_cache import NUM_CLAIMED, ClaimedSlot, DecoderShape, array_into
from runners.tokens.choice import (
    CAPTURED_KINDS,
    MAX_RESULTS,
    ChoiceKind,
    Chosen,
    NextInputs,
    PackedConditions,
    RowConditions,
    choose,
    choose_tokens,
    fits,
    next_inputs,
    unpack,
    with_wider_nucleus,
)

logger = logging.getLogger(__name__)

# positions beside the least of a sequence; each is four times the one before: masked cost little
_SMALLEST_ROOM = 64
_ALIGNMENT = 16
_USUAL_PROMPT = 63  # tokens
_PREFILL_SIZES = (8, 4, 2, 1)  # sequences
# limits a part of a prefill: the memory of its activations stays reserved
_MAX_PREFILL_POSITIONS = 5120
_IMAGE = -1  # the token id of a position that holds a feature


@dataclass(frozen=True, slots=True)
class CudaGraph:
    """Captured operations: `replay` recomputes `output` in place from its inputs' content."""

    replay: Callable[[], object]
    output: Tensor


Capture = Callable[[Callable[[], Tensor]], CudaGraph]


@dataclass(frozen=True, slots=True)
class StepShape:
    """The shape of a captured step: its rows, the positions read of each slot, and its prefixes."""

    num_rows: int
    length: int
    num_prefixes: int = 0  # prefixes shared by beams; 0: row i reads prefix i
    prefix_length: int = 0  # positions read of each prefix
    has_adapters: bool = False

    def holds(self, step: "StepShape") -> bool:
        return (
            self.num_rows >= step.num_rows
            and self.length >= step.length
            and self.num_prefixes >= step.num_prefixes
            and bool(self.num_prefixes) == bool(step.num_prefixes)
            and self.prefix_length >= step.prefix_length
            and self.has_adapters == step.has_adapters
        )


Step = Callable[[Tensor, StepShape], Tensor]  # token ids (B,) -> logits (B, V)


def step_shapes(
    shape: DecoderShape, num_slots: int, num_beams: int = 1, has_adapters: bool = False
) -> list[StepShape]:
    """Return the shapes in which steps are captured, the smallest first.

    With a checkpoint's own number of beams, few prefixes are read; the largest fits any mixture.
    """
    lengths = {shape.num_positions}
    room = _SMALLEST_ROOM
    while shape.min_length + room < shape.num_positions:
        lengths.add(shape.min_length + room)
        room *= 4
    rows = {(num_rows, 0) for num_rows in row_counts(num_slots)}
    prefix_lengths = {0}
    if shape.has_prefixes:
        rows.add((num_slots, num_slots))
        for num_rows in row_counts(num_slots):
            if 1 < num_beams <= num_rows:
                rows.add((num_rows, -(-num_rows // num_beams)))
        usual = prompt_lengths(shape.num_image_tokens, shape.num_positions)
        prefix_lengths = {*usual[-1:], shape.num_positions}
    shapes: list[StepShape] = []
    combined = product(
        sorted(rows), sorted(lengths), sorted(prefix_lengths), sorted({False, has_adapters})
    )
    for (num_rows, num_prefixes), length, prefix_length, with_adapters in combined:
        shapes.append(StepShape(num_rows, length, num_prefixes, prefix_length, with_adapters))
    return shapes


def row_counts(num_slots: int) -> list[int]:
    powers = (1 << power for power in range(num_slots.bit_length()))
    return sorted({num_slots, *powers})


def prompt_lengths(num_image_tokens: int, num_positions: int) -> list[int]:
    """Return the padded lengths of an image with its prompt, without those of long prompts."""
    longest = num_image_tokens + _USUAL_PROMPT
    shortest = (num_image_tokens // _ALIGNMENT + 1) * _ALIGNMENT
    lengths = range(shortest, longest + _ALIGNMENT, _ALIGNMENT)
    return [length for length in lengths if length <= num_positions]


class CapturedSteps:
    """The captured steps and choices of `num_slots` slots; `shapes` ascend.

    `step` takes lengths from the cache and leaves incrementing them to its caller. It also receives
    free slots, and may write their last position.
    """

    def __init__(
        self,
        step: Step,
        shapes: Sequence[StepShape],
        num_slots: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._step = step
        self._shapes = shapes
        self._lengths = sorted(set(map(attrgetter("length"), shapes)))
        self._prefix_lengths = sorted(set(map(attrgetter("prefix_length"), shapes)))
        # the smallest shape of a step's rows, prefixes, adapters and rounded lengths
        self._smallest: dict[tuple[int, int, bool, int, int], StepShape | None] = {}
        self._num_slots = num_slots
        self._row_counts = row_counts(num_slots)
        self._device = device
        self._capture = capture
        self._steps: dict[StepShape | None, CudaGraph] = {}
        # the choices of a step and of a prefill, by the number of rows
        self._choices: dict[tuple[bool, int, ChoiceKind], CudaGraph] = {}
        # The pool: the next token of each slot, and the sources and targets of moves.
        self._inputs = torch.zeros(3, num_slots, dtype=torch.long, device=device)
        # memory of the host that a GPU copies from and to without waiting
        is_cuda = device.type == "cuda"
        self._host_tokens = torch.zeros(num_slots, dtype=torch.long, pin_memory=is_cuda)
        num_results = num_slots * MAX_RESULTS
        self._host_results = torch.zeros(num_results, dtype=torch.float64, pin_memory=is_cuda)
        self._is_loading = False  # nothing has waited for the last copy of `_host_tokens` yet
        self.results_copied: torch.cuda.Event | None = None  # a CPU is never behind
        if is_cuda:
            self.results_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @property
    def can_choose(self) -> bool:
        return len(self._choices) == 2 * len(self._row_counts) * len(CAPTURED_KINDS)

    def moves(self, num_moves: int) -> Tensor:
        """Return the sources and targets (2, M) of beam moves, possibly still being chosen."""
        return self._inputs[1:, :num_moves]

    def capture_all(self, end_token_ids: Iterable[int]) -> None:
        """Capture all while no slot is in use; log a failure, after which the rest is eager."""
        name = "logits"
        try:
            self._end_token_ids = torch.tensor(sorted(end_token_ids), device=self._device)
            logits = self._step(self._inputs[0], self._shapes[-1])  # (slots, V)
            self._logits = torch.empty_like(logits)
            # a prefill has its own: a pass launched ahead may still wait for its choice
            self.first_logits = torch.empty_like(logits)
            # the logits that tokens were last drawn from
            self._sampled_logits = torch.empty_like(logits)
            self._conditions = PackedConditions(self._num_slots, logits.shape[1], self._device)
            for shape in reversed(self._shapes):
                name = f"a step of {shape.num_rows} rows of {shape.length} positions"
                self._steps[shape] = self._capture(partial(self._store_logits, shape))
            for key in product((False, True), self._row_counts[::-1], CAPTURED_KINDS):
                name = f"the choice of {key[1]} tokens"
                self._choices[key] = self._capture(partial(self._store_choice, *key))
        except RuntimeError:
            logger.exception("no CUDA graph for %s", name)

    def _store_logits(self, shape: StepShape) -> Tensor:
        logits = self._step(self._inputs[0, : shape.num_rows], shape)
        return self._logits[: shape.num_rows].copy_(logits)

    def _store_choice(self, is_first: bool, num_rows: int, kind: ChoiceKind) -> Tensor:
        """Return the results; those of a step are by default the inputs of the next."""
        conditions = self._conditions
        logits = (self.first_logits if is_first else self._logits)[:num_rows]
        results = choose(conditions, logits, kind)
        # the next step, which overwrites the others, is launched before a wide nucleus is known
        if kind.has_sampled:
            self._sampled_logits[:num_rows].copy_(logits)
        if is_first:
            return results
        following = next_inputs(conditions, results, kind, self._end_token_ids)
        self._inputs[: len(following), :num_rows].copy_(following)
        return results

    def load(self, token_ids: Sequence[int]) -> None:
        """Set the next tokens of slots 0 to B - 1."""
        if self._is_loading:  # the source of a copy must not change before its end
            self._inputs[0, :1].cpu()
        num_tokens = len(token_ids)
        self._host_tokens[:num_tokens] = torch.tensor(token_ids)
        self._inputs[0, :num_tokens].copy_(self._host_tokens[:num_tokens], non_blocking=True)
        self._is_loading = True

    def run(self, step: StepShape) -> Tensor:
        """Return the logits (B, V) after the tokens of slots 0 to B - 1, valid until the next call.

        A slot without a free position, whose sequence ends, gets its last one overwritten.
        """
        graph = self._steps.get(self._shape(step))
        if graph is None:
            return self.store(self._step(self._inputs[0, : step.num_rows], step))
        graph.replay()
        return self._logits[: step.num_rows]

    def _shape(self, step: StepShape) -> StepShape | None:
        """Return the smallest shape that holds `step`, or None."""
        length = bisect_left(self._lengths, step.length)
        prefix_length = bisect_left(self._prefix_lengths, step.prefix_length)
        key = step.num_rows, step.num_prefixes, step.has_adapters, length, prefix_length
        if key not in self._smallest:
            holding = (shape for shape in self._shapes if shape.holds(step))
            self._smallest[key] = next(holding, None)
        return self._smallest[key]

    def store(self, logits: Tensor, is_first: bool = False) -> Tensor:
        """Return the logits of an eager step or prefill, in the pool if choices are captured."""
        if not self._choices:
            return logits
        pool = self.first_logits if is_first else self._logits
        return pool[: len(logits)].copy_(logits)

    def choose(
        self,
        logits: Tensor,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        inputs: NextInputs | None = None,
        look_ahead: Callable[[], Tensor] | None = None,
        is_first: bool = False,
    ) -> Chosen:
        """Return the choices as `choose_tokens` does, from the logits (R, V) of the last pass or
        prefill.

        `inputs` are by default the tokens of all rows in order. `look_ahead` launches the next pass
        after the choice is launched, before its results are awaited; not if tokens are chosen
        eagerly.
        """
        inputs = inputs or NextInputs(range(len(logits)), [0] * len(logits))
        num_rows = max(len(logits), len(inputs.rows))
        kind = ChoiceKind.captured(conditions, inputs)
        key = is_first, self._row_counts[bisect_left(self._row_counts, num_rows)], kind
        if key not in self._choices or not fits(conditions):
            return Chosen(choose_tokens(logits, conditions, sequences))
        self._conditions.write(conditions, sequences, kind, inputs)
        self._choices[key].replay()
        output = self._choices[key].output[: len(logits)]
        on_host = self._host_results[: output.numel()].view(output.shape)
        on_host.copy_(output, non_blocking=True)
        if self.results_copied is not None:
            self.results_copied.record()
        ahead = None if look_ahead is None else look_ahead()
        if self.results_copied is not None:
            self.results_copied.synchronize()  # the only wait of a step
        self._is_loading = False
        results = on_host.numpy()
        choices = unpack(results, conditions, sequences)
        wide = with_wider_nucleus(results, sequences)
        if wide:
            wide_sequences = [sequences[place] for place in wide]
            logits = self._sampled_logits[: len(results)]
            redrawn = choose_tokens(logits, conditions, wide_sequences)
            for place, sequence_choices in zip(wide, redrawn, strict=True):
                choices[place] = sequence_choices
        return Chosen(choices, ahead, redrawn=wide)


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """The shape of a captured prefill."""

    num_sequences: int
    length: int  # positions: image, prompt and padding
    has_adapters: bool = False


@dataclass(frozen=True, slots=True)
class FixedPrefill:
    """The inputs of a captured prefill: views of memory at fixed addresses."""

    features: Tensor  # (B, S, C) float32, at the positions of the image
    token_ids: Tensor  # (B, S), negative at the positions of the image
    num_prefix_tokens: Tensor  # (B,)
    rows: Tensor  # (B,) of the logits among all admitted sequences
    claimed: Tensor  # (B, W, 5): all slots of each sequence, some maybe repeated
    adapter_places: Tensor | None = None  # (B,) in the pool; None: no adapters


Compute = Callable[[FixedPrefill], Tensor]  # returns the logits (B, V)


def prefill_shapes(
    shape: DecoderShape, num_slots: int, has_adapters: bool = False
) -> list[PrefillShape]:
    """Return the captured shapes, the largest first: its memory serves the others."""
    lengths = prompt_lengths(shape.num_image_tokens, shape.num_positions)
    shapes: list[PrefillShape] = []
    for num_sequences, length in product(_PREFILL_SIZES, lengths):
        if num_sequences <= num_slots and num_sequences * length <= _MAX_PREFILL_POSITIONS:
            for with_adapters in sorted({False, has_adapters}):
                shapes.append(PrefillShape(num_sequences, length, with_adapters))
    return sorted(shapes, key=lambda shape: -shape.num_sequences * shape.length)


class CapturedPrefills:
    """The captured prefills of one decoder; each sequence has up to `max_beams` slots."""

    def __init__(
        self, compute: Compute, shapes: Sequence[PrefillShape], hidden_size: int, max_beams: int
    ) -> None:
        self._compute = compute
        self._shapes = shapes
        self._hidden_size = hidden_size
        self._max_beams = max_beams
        self._graphs: dict[PrefillShape, CudaGraph] = {}
        # captured for a single sequence, ascending, without adapters and with them
        self._lengths: dict[bool, list[int]] = {False: [], True: []}

    def capture_all(self, capture: Capture, device: torch.device) -> None:
        num_features = 0
        num_numbers = 0
        for shape in self._shapes:
            num_positions = shape.num_sequences * shape.length
            num_features = max(num_features, num_positions * self._hidden_size)
            num_numbers = max(num_numbers, shape.num_sequences * self._num_columns(shape))
        try:
            self._features = torch.zeros(num_features, device=device)
            self._numbers = torch.zeros(num_numbers, dtype=torch.long, device=device)
            for shape in self._shapes:
                inputs = self._inputs(shape)
                self._numbers.zero_()
                # a sequence without a position would give NaN, which slots pass on
                inputs.num_prefix_tokens.fill_(1)
                self._graphs[shape] = capture(partial(self._compute, inputs))
        except RuntimeError:
            logger.exception("no CUDA graph for a prefill")
        for shape in sorted(self._graphs, key=lambda shape: shape.length):
            if shape.num_sequences == 1:
                self._lengths[shape.has_adapters].append(shape.length)

    def hold(self, requests: Sequence[SequenceRequest], places: Sequence[int]) -> bool:
        """Return True if such prefills are captured; `places` of adapters in the pool, or 0."""
        for request, place in zip(requests, places, strict=True):
            if request.num_beams > self._max_beams or self._length([request], place > 0) is None:
                return False
        return True

    def run(
        self,
        requests: Sequence[SequenceRequest],
        claimed: Sequence[Sequence[ClaimedSlot]],
        places: Sequence[int],
    ) -> None:
        """Prefill into the claimed slots of each request, whose logits get its number."""
        for has_adapters in (False, True):
            rows = [row for row, place in enumerate(places) if (place > 0) == has_adapters]
            length = self._length([requests[row] for row in rows], has_adapters)
            while rows and length is not None:
                for num_sequences in _PREFILL_SIZES:
                    shape = PrefillShape(num_sequences, length, has_adapters)
                    if num_sequences <= len(rows) and shape in self._graphs:
                        break
                part = rows[: shape.num_sequences]
                del rows[: shape.num_sequences]
                self._load(shape, part, requests, claimed, places)
                self._graphs[shape].replay()

    def _length(self, requests: Sequence[SequenceRequest], has_adapters: bool) -> int | None:
        """Return the least captured length, or None."""
        lengths = self._lengths[has_adapters]
        longest = max((request.num_prefix_tokens for request in requests), default=0)
        place = bisect_left(lengths, longest)
        return lengths[place] if place < len(lengths) else None

    def _num_columns(self, shape: PrefillShape) -> int:
        return shape.length + 3 + self._max_beams * NUM_CLAIMED

    def _inputs(self, shape: PrefillShape) -> FixedPrefill:
        num_sequences = shape.num_sequences
        num_features = num_sequences * shape.length * self._hidden_size
        features = self._features[:num_features].view(num_sequences, shape.length, -1)
        numbers = self._numbers[: num_sequences * self._num_columns(shape)].view(num_sequences, -1)
        sizes = [shape.length, 3, self._max_beams * NUM_CLAIMED]
        token_ids, by_sequence, claimed = torch.split(numbers, sizes, dim=1)
        lengths, rows, places = by_sequence.T
        by_slot = claimed.view(num_sequences, self._max_beams, NUM_CLAIMED)
        adapter_places = places if shape.has_adapters else None
        return FixedPrefill(features, token_ids, lengths, rows, by_slot, adapter_places)

    def _load(
        self,
        shape: PrefillShape,
        part: Sequence[int],
        requests: Sequence[SequenceRequest],
        claimed: Sequence[Sequence[ClaimedSlot]],
        places: Sequence[int],
    ) -> None:
        inputs = self._inputs(shape)
        numbers = np.zeros((len(part), self._num_columns(shape)), dtype=np.int64)
        for row, features, index in zip(numbers, inputs.features, part, strict=True):
            request = requests[index]
            num_features = len(request.image_features)
            num_tokens = request.num_prefix_tokens
            row[:num_features] = _IMAGE
            row[num_features:num_tokens] = request.prompt_ids
            row[shape.length : shape.length + 3] = num_tokens, index, places[index]
            slots = claimed[index]
            repeated = [*slots, *[slots[0]] * (self._max_beams - len(slots))]
            row[shape.length + 3 :] = np.ravel(repeated)
            features[:num_features].copy_(request.image_features, non_blocking=True)
        array_into(self._numbers[: numbers.size], numbers.ravel())


_memory_pool = cache(torch.cuda.graph_pool_handle)  # one of all graphs of the process
# kernels keep the priority that they were captured with
_capture_stream = cache(partial(torch.cuda.Stream, priority=-1))


def capture_cuda_graph(compute: Callable[[], Tensor]) -> CudaGraph:
    """Capture `compute` after a warm-up run that loads kernels and workspaces.

    All graphs share one memory pool: only one may be in use at a time. Source: PyTorch's notes on
    CUDA semantics, "CUDA Graphs", whole-network capture, and "Sharing memory across captures".
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_memory_pool(), stream=_capture_stream()):
        output = compute()
    return CudaGraph(graph.replay, output)
