"""Engines as on a GPU, captured by a fake."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor

from runners.decoder.captured_passes import CudaGraph
from runners.decoder.engines import EagerEngine, GraphEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import LiveSequence


def make_endless(decoder: Decoder) -> None:
    """Remove the rules, so that answers end only at their limit."""
    decoder.rules = replace(
        decoder.rules,
        eos_token_ids=frozenset({-1}),
        forced_eos_token_id=None,
        no_repeat_ngram_size=0,
    )


class WithoutDrafts(EagerEngine):
    """Reads one token of each slot."""

    def drafts(
        self,
        sequences: Sequence[LiveSequence],
        is_first: bool = False,  # noqa: ARG002
    ) -> list[Sequence[int]]:
        return [()] * len(sequences)


def graph_engine(decoder: Decoder, num_slots: int) -> GraphEngine:
    return GraphEngine(decoder, num_slots, capture_eagerly)


class ReplayedEagerly:
    """A captured pass that computes when it is replayed, and not before."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._output: Tensor | None = None

    @property
    def output(self) -> Tensor:
        if self._output is None:
            self._output = self._compute().clone()
        return self._output

    def replay(self) -> None:
        result = self._compute()
        if self._output is None:
            self._output = result.clone()
        else:
            self._output.copy_(result)


def capture_eagerly(compute: Callable[[], Tensor]) -> CudaGraph:
    return cast(CudaGraph, ReplayedEagerly(compute))
