"""CUDA graphs of decode steps: captured once for each of a few fixed shapes, then replayed.

On a GPU, launching the hundreds of small kernels of a step one by one takes longer than running them; a graph launches
them all at once, for the shapes and the memory that it was captured with. Rows and lengths are therefore rounded up to
a bucket; the excess consists of free slots and masked positions. All buckets are captured before the model is ready: a
capture stops every kernel of the process, and takes memory. On a CPU steps run eagerly in their own shapes. Knows token
ids and lengths, no family. Shapes: B rows, V vocabulary.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_SHORTEST = 64  # positions of the smallest bucket; each is four times the one before, as masked positions cost little

Step = Callable[[Tensor, int], Tensor]  # token ids (B,) and length -> logits (B, V)
Capture = Callable[[Callable[[], Tensor]], "CudaGraph"]


@dataclass(frozen=True, slots=True)
class CudaGraph:
    """A captured step: `replay` recomputes `logits` (B, V) in place from the current content of its inputs."""

    replay: Callable[[], object]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a captured step: its rows, and the positions that it reads of each slot."""

    num_rows: int
    length: int


def buckets(num_slots: int, num_positions: int) -> list[Bucket]:
    """Return all buckets of a cache, the largest first: its memory serves the others."""
    rows, lengths = {num_slots}, {num_positions}
    rows.update(1 << power for power in range(num_slots.bit_length()) if 1 << power < num_slots)
    length = _SHORTEST
    while length < num_positions:
        lengths.add(length)
        length *= 4
    return [Bucket(*sizes) for sizes in product(sorted(rows, reverse=True), sorted(lengths, reverse=True))]


@dataclass(slots=True)
class CudaGraphs:
    """The captured steps of one cache of `num_slots` slots with `num_positions` each.

    `step` takes the lengths of its sequences from the cache and leaves incrementing them to its caller: computing it
    twice gives the same result. It also receives free slots, and may write their last position.
    """

    step: Step
    num_slots: int
    num_positions: int
    device: torch.device
    capture: Capture
    _token_ids: dict[int, Tensor] = field(default_factory=dict)  # input buffers, by number of rows
    _graphs: dict[Bucket, CudaGraph] = field(default_factory=dict)

    def capture_all(self) -> None:
        """Capture the step of every bucket, while no slot is in use; log a failure, after which steps run eagerly."""
        for bucket in buckets(self.num_slots, self.num_positions):
            buffer = self._token_ids.setdefault(
                bucket.num_rows, torch.zeros(bucket.num_rows, dtype=torch.long, device=self.device)
            )
            try:
                self._graphs[bucket] = self.capture(partial(self.step, buffer, bucket.length))
            except RuntimeError:
                logger.exception("no CUDA graph for %d rows of %d positions", bucket.num_rows, bucket.length)
                return

    def logits(self, token_ids: Tensor, length: int) -> Tensor:
        """Return the logits (B, V) after `token_ids` (B,) of slots 0 to B - 1; the next call overwrites them."""
        fitting = (bucket for bucket in self._graphs if bucket.num_rows >= len(token_ids) and bucket.length >= length)
        smallest = min(fitting, key=lambda bucket: (bucket.num_rows, bucket.length), default=None)
        if smallest is None:
            return self.step(token_ids.to(self.device), length)
        self._token_ids[smallest.num_rows][: len(token_ids)] = token_ids
        graph = self._graphs[smallest]
        graph.replay()
        return graph.logits[: len(token_ids)]


@cache
def _memory_pool() -> Any:
    """Return the memory pool of all graphs of the process."""
    return torch.cuda.graph_pool_handle()


def capture_cuda_graph(compute: Callable[[], Tensor]) -> CudaGraph:
    """Capture `compute` on the current GPU, after one warm-up run that loads kernels and workspaces.

    All graphs share one memory pool, so only one may be in use at a time. Source: PyTorch's notes on CUDA semantics,
    "CUDA Graphs", whole-network capture, and "Sharing memory across captures".
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_memory_pool()):
        logits = compute()
    return CudaGraph(graph.replay, logits)
