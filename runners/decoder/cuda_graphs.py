"""CUDA graphs of decode steps: captured once for each of a few fixed shapes, then replayed.

On a GPU, launching the hundreds of small kernels of a step one by one takes longer than running them; a graph launches
them all at once, for the shapes and the memory that it was captured with. Rows and lengths are therefore rounded up to
a bucket; the excess consists of free slots and masked positions. On a CPU steps run eagerly in their own shapes. Knows
token ids and lengths, no family. Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LENGTH_STEP = 64  # positions between two buckets; a masked position costs little compared with another graph

Step = Callable[[Tensor, tuple[int, ...]], Tensor]  # token ids (B,) and lengths -> logits (B, V)
Capture = Callable[[Callable[[], Tensor]], "CudaGraph"]


@dataclass(frozen=True, slots=True)
class CudaGraph:
    """A captured step: `replay` recomputes `logits` (B, V) in place from the current content of its inputs."""

    replay: Callable[[], object]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a captured step: its rows, and the positions that it reads of each cache."""

    num_rows: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, num_rows: int, lengths: tuple[int, ...], num_slots: int, num_positions: int) -> "Bucket":
        """Return the smallest bucket that holds a step: rows a power of two, lengths a multiple of 64."""
        rounded = tuple(min(num_positions, -(-length // _LENGTH_STEP) * _LENGTH_STEP) for length in lengths)
        return cls(min(num_slots, 1 << (num_rows - 1).bit_length()), rounded)


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

    def logits(self, token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return the logits (B, V) after `token_ids` (B,) of slots 0 to B - 1; the next call overwrites them."""
        bucket = Bucket.of(len(token_ids), lengths, self.num_slots, self.num_positions)
        buffer = self._input_buffer(bucket.num_rows)
        buffer[: len(token_ids)] = token_ids
        graph = self._graphs.get(bucket)
        if graph is None:
            graph = self._graphs[bucket] = self.capture(lambda: self.step(buffer, bucket.lengths))
        graph.replay()
        return graph.logits[: len(token_ids)]

    def _input_buffer(self, num_rows: int) -> Tensor:
        buffer = self._token_ids.get(num_rows)
        if buffer is None:
            buffer = self._token_ids[num_rows] = torch.zeros(num_rows, dtype=torch.long, device=self.device)
        return buffer


def capture_cuda_graph(compute: Callable[[], Tensor]) -> CudaGraph:
    """Capture `compute` on the current GPU, after one warm-up run that loads kernels and workspaces.

    Source: PyTorch's notes on CUDA semantics, "CUDA Graphs", whole-network capture.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = compute()
    return CudaGraph(graph.replay, logits)
