"""Decode steps of a few fixed shapes, recorded once and replayed: CUDA graphs.

On a card a step's hundreds of small kernels take longer to launch one by one than to run; a graph launches them all,
for the shapes and the memory that it was recorded with. So rows and lengths are rounded up to those of a bucket: what
is more than a step needs are free slots and masked places. On a CPU there is nothing to gain: steps keep their
shapes. It knows token ids and lengths and nothing of a family. Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_LENGTH_STEP = 64  # places of a bucket; a masked place costs little beside a graph of its own

Step = Callable[[Tensor, tuple[int, ...]], Tensor]  # token ids (B,) and lengths -> logits (B, V)
Record = Callable[[Callable[[], Tensor]], "Recorded"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded step: `replay` computes `logits` (B, V) anew in their memory, from what its inputs then hold."""

    replay: Callable[[], object]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shape of a step: rows, and how many places of each cache it reads."""

    num_rows: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, num_rows: int, lengths: tuple[int, ...], num_slots: int, num_places: int) -> "Bucket":
        """Return the smallest bucket that holds a step: a power of two of rows, lengths in steps of 64."""
        rounded = tuple(min(num_places, -(-length // _LENGTH_STEP) * _LENGTH_STEP) for length in lengths)
        return cls(min(num_slots, 1 << (num_rows - 1).bit_length()), rounded)


@dataclass(slots=True)
class StaticSteps:
    """The recorded steps of one cache of `num_slots` sequences with `num_places` each.

    `step` reads the lengths of its sequences from the cache and leaves counting to its caller, so that computing it
    twice is as good as once. It is also given free slots, whose last place it may write.
    """

    step: Step
    num_slots: int
    num_places: int
    device: torch.device
    record: Record
    _token_ids: dict[int, Tensor] = field(default_factory=dict)  # by number of rows
    _recorded: dict[Bucket, Recorded] = field(default_factory=dict)

    def logits(self, token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return the logits (B, V) after `token_ids` (B,) of slots 0 to B - 1; the next call overwrites them."""
        bucket = Bucket.of(len(token_ids), lengths, self.num_slots, self.num_places)
        given = self._token_ids.get(bucket.num_rows)
        if given is None:
            given = torch.zeros(bucket.num_rows, dtype=torch.long, device=self.device)
            self._token_ids[bucket.num_rows] = given
        given[: len(token_ids)] = token_ids
        recorded = self._recorded.get(bucket)
        if recorded is None:
            recorded = self._recorded[bucket] = self.record(lambda: self.step(given, bucket.lengths))
        recorded.replay()
        return recorded.logits[: len(token_ids)]


def record_cuda_graph(compute: Callable[[], Tensor]) -> Recorded:
    """Record `compute` on the current card, after one run that loads kernels and workspaces.

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
    return Recorded(graph.replay, logits)
