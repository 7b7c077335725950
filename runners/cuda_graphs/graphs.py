"""CUDA graphs of decode steps: captured once for each of a few fixed shapes, then replayed.

On a GPU, launching the hundreds of small kernels of a step one by one takes longer than running
them; a graph launches them all at once, for the shapes and the memory that it was captured with.
Rows and lengths are therefore rounded up to a bucket; the excess consists of free slots and masked
positions. All buckets are captured before the model is ready: a capture stops every kernel of the
process, and takes memory.

A pool on the device holds what passes and choices exchange: next tokens, moves of beams, logits.

    load      tokens of the host into the pool: 1 transfer
    run       a graph for each bucket (runners/cuda_graphs/buckets.py): a pass over the pool's
              tokens; its logits are in the pool until the next pass
    choose    conditions to the device: 1 transfer; a graph for each number of rows and kind, which
              puts the next tokens and the moves of beams into the pool; results to the host: 1
              transfer, which alone waits, after the next pass has been launched

The host uses the results, and computes the next conditions, while the next pass runs. With step and
choice in one graph, either it would compute them before, or every length would have a graph of each
kind. Knows token ids and lengths, no family. Shapes: B slots or rows, R rows, M moves, V
vocabulary.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from operator import attrgetter
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from runners.cuda_graphs.buckets import Bucket, row_counts
from runners.cuda_graphs.choice import (
    KINDS,
    MAX_RESULTS,
    ChoiceKind,
    choose,
    has_wider_nucleus,
    next_moves,
    next_tokens,
    unpack_rows,
)
from runners.cuda_graphs.packed_conditions import PackedConditions, fits
from runners.tokens.conditions import Chosen, NextInputs, RowConditions
from runners.tokens.token_choice import Results, choose_tokens

logger = logging.getLogger(__name__)

PassT = TypeVar("PassT")
Step = Callable[[Tensor, Bucket], Tensor]  # token ids (B,) -> logits (B, V)
Capture = Callable[[Callable[[], Tensor]], "CudaGraph"]


@dataclass(frozen=True, slots=True)
class CudaGraph:
    """Captured operations: `replay` recomputes `output` in place from its inputs' content."""

    replay: Callable[[], object]
    output: Tensor


class Event(Protocol):
    """A point in the device's work, as `torch.cuda.Event`."""

    def record(self) -> None:
        """Set the point to the end of the work launched so far."""

    def synchronize(self) -> None:
        """Wait until the device has passed the point."""


class _NoEvent:
    """The event of a CPU, which finishes all work when it is launched."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class CudaGraphs:
    """The captured steps and choices of one cache of `num_slots` slots with `num_positions` each.

    `step` takes the lengths of its sequences from the cache and leaves incrementing them to its
    caller: computing it twice gives the same result. It also receives free slots, and may write
    their last position.
    """

    def __init__(
        self, step: Step, num_slots: int, num_positions: int, device: torch.device, capture: Capture
    ) -> None:
        self._step = step
        self._num_slots = num_slots
        self._num_positions = num_positions
        self._device = device
        self._capture = capture
        self._steps: dict[Bucket, CudaGraph] = {}
        # the choices of a step and of a prefill, by the number of rows
        self._choices: dict[tuple[bool, int, ChoiceKind], CudaGraph] = {}
        # The pool: the next token of each slot, and the sources and targets of moves.
        self._inputs = torch.zeros(3, num_slots, dtype=torch.long, device=device)
        self._host_tokens = self._pinned(num_slots, dtype=torch.long)
        self._host_results = self._pinned(num_slots * MAX_RESULTS, dtype=torch.float64)
        self._is_loading = False  # nothing has waited for the last copy of `_host_tokens` yet
        self.results_copied: Event = _NoEvent()
        if device.type == "cuda":
            self.results_copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def _pinned(self, *size: int, dtype: torch.dtype) -> Tensor:
        """Return memory of the host that a GPU copies from and to without waiting."""
        return torch.zeros(size, dtype=dtype, pin_memory=self._device.type == "cuda")

    @property
    def num_captured(self) -> int:
        return len(self._steps) + len(self._choices)

    @property
    def can_choose(self) -> bool:
        """True once all choices are captured."""
        return len(self._choices) == 2 * len(row_counts(self._num_slots)) * len(KINDS)

    def moves(self, num_moves: int) -> Tensor:
        """Return the sources and targets (2, M) of beam moves, possibly still being chosen."""
        return self._inputs[1:, :num_moves]

    def capture_all(self, buckets: Iterable[Bucket], end_token_ids: Iterable[int]) -> None:
        """Capture all steps and choices while no slot is in use; log a failure, after which the
        others run eagerly.
        """
        name = "logits"
        try:
            self._end_token_ids = torch.tensor(sorted(end_token_ids), device=self._device)
            # (slots, V)
            largest = Bucket(self._num_slots, self._num_positions, 0, self._num_positions)
            self._logits = torch.empty_like(self._step(self._inputs[0], largest))
            # a prefill has its own: a pass launched ahead may still wait for its choice
            self._first_logits = torch.empty_like(self._logits)
            # the logits that tokens were last drawn from
            self._sampled_logits = torch.empty_like(self._logits)
            num_tokens = self._logits.shape[1]
            self._conditions = PackedConditions(self._num_slots, num_tokens, self._device)
            for bucket in buckets:
                name = f"a step of {bucket.num_rows} rows of {bucket.length} positions"
                self._steps[bucket] = self._capture(partial(self._store_logits, bucket))
            for key in product((False, True), row_counts(self._num_slots), KINDS):
                name = f"the choice of {key[1]} tokens"
                self._choices[key] = self._capture(partial(self._store_choice, *key))
        except RuntimeError:
            logger.exception("no CUDA graph for %s", name)

    def _store_logits(self, bucket: Bucket) -> Tensor:
        """Compute a step's logits into the pool."""
        logits = self._step(self._inputs[0, : bucket.num_rows], bucket)
        return self._logits[: bucket.num_rows].copy_(logits)

    def _store_choice(self, is_first: bool, num_rows: int, kind: ChoiceKind) -> Tensor:
        """Choose tokens and return the results; those of a step are by default the inputs of the
        next.
        """
        conditions = self._conditions
        logits = (self._first_logits if is_first else self._logits)[:num_rows]
        results = choose(conditions, logits, kind)
        # the next step, which overwrites the others, is launched before a wide nucleus is known
        if kind.has_sampled:
            self._sampled_logits[:num_rows].copy_(logits)
        if is_first:
            return results
        tokens = next_tokens(conditions, results, kind, self._end_token_ids)
        self._inputs[0, :num_rows].copy_(tokens)
        if kind.has_beams:
            moves = next_moves(conditions, results, self._end_token_ids)
            self._inputs[1:, :num_rows].copy_(moves)
        return results

    def load(self, token_ids: Sequence[int]) -> None:
        """Set the next tokens of slots 0 to B - 1."""
        if self._is_loading:  # the source of a copy must not change before its end
            self._inputs[0, :1].cpu()
        num_tokens = len(token_ids)
        self._host_tokens[:num_tokens] = torch.tensor(token_ids)
        self._inputs[0, :num_tokens].copy_(self._host_tokens[:num_tokens], non_blocking=True)
        self._is_loading = True

    def run(self, wanted: Bucket) -> Tensor:
        """Return the logits (B, V), valid until the next call, of slots 0 to B - 1.

        They follow the pool's tokens, which the length counts. A slot without a free position,
        whose sequence ends with the token before, gets its last one overwritten.
        """
        wanted = replace(wanted, length=min(wanted.length, self._num_positions))
        fitting = (bucket for bucket in self._steps if bucket.holds(wanted))
        order = attrgetter("has_adapters", "num_rows", "num_prefixes", "prefix_length", "length")
        smallest = min(fitting, key=order, default=None)
        if smallest is None:
            return self.store(self._step(self._inputs[0, : wanted.num_rows], wanted))
        self._steps[smallest].replay()
        return self._logits[: wanted.num_rows]

    def store(self, logits: Tensor, is_first: bool = False) -> Tensor:
        """Return the logits of an eager step or prefill, in the pool if choices are captured."""
        if not self._choices:
            return logits
        pool = self._first_logits if is_first else self._logits
        return pool[: len(logits)].copy_(logits)

    def store_first(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Put logits (R, V) of a prefill into `rows` (R,) of the pool, and return them."""
        self._first_logits.index_copy_(0, rows, logits)
        return logits

    def first_logits(self, num_rows: int) -> Tensor:
        """Return the logits (R, V) of the first rows of a prefill."""
        return self._first_logits[:num_rows]

    def choose(
        self,
        logits: Tensor,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        inputs: NextInputs | None = None,
        look_ahead: Callable[[], PassT] | None = None,
        is_first: bool = False,
    ) -> Chosen[PassT]:
        """Return the choices of each sequence as `choose_tokens` does; `logits` (R, V) are those of
        the last `run` or `store`, or of the last prefill.

        `inputs` are by default the tokens of all rows in order. `look_ahead` launches the next
        pass: it is called after the choice is launched, which sets the next tokens and `moves`, and
        before its results are awaited; it is not called if tokens are chosen eagerly.
        """
        inputs = inputs or NextInputs(range(len(logits)), [0] * len(logits))
        kind = ChoiceKind.of(conditions, inputs)
        num_rows = max(len(logits), len(inputs.rows))
        counts = row_counts(self._num_slots)
        key = is_first, min(num for num in counts if num >= num_rows), kind
        if key not in self._choices or not fits(conditions):
            return Chosen(choose_tokens(logits, conditions, sequences))
        self._conditions.write(conditions, sequences, inputs)
        self._choices[key].replay()
        results, ahead = self._read(self._choices[key].output[: len(logits)], look_ahead)
        choices = unpack_rows(results, conditions, sequences)
        wide = [place for place, rows in enumerate(sequences) if has_wider_nucleus(results, rows)]
        if wide:
            logits = self._sampled_logits[: len(results)]
            drawn = choose_tokens(logits, conditions, [sequences[place] for place in wide])
            for place, own in zip(wide, drawn, strict=True):
                choices[place] = own
        return Chosen(choices, ahead, redrawn=wide)

    def _read(
        self, output: Tensor, look_ahead: Callable[[], PassT] | None
    ) -> tuple[Results, PassT | None]:
        """Copy results to the host, and launch the next pass before the only wait of a step."""
        host = self._host_results[: output.numel()].view(output.shape)
        host.copy_(output, non_blocking=True)
        self.results_copied.record()
        ahead = None if look_ahead is None else look_ahead()
        self.results_copied.synchronize()
        self._is_loading = False
        return host.numpy(), ahead


_memory_pool = cache(torch.cuda.graph_pool_handle)  # one of all graphs of the process


def capture_cuda_graph(compute: Callable[[], Tensor]) -> CudaGraph:
    """Capture `compute` on the current GPU, after a warm-up run that loads kernels and workspaces.

    All graphs share one memory pool, so only one may be in use at a time. Source: PyTorch's notes
    on CUDA semantics, "CUDA Graphs", whole-network capture, and "Sharing memory across captures".
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_memory_pool()):
        output = compute()
    return CudaGraph(graph.replay, output)
