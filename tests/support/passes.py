"""Engines as on a GPU, captured by a fake; one notes the passes that are launched ahead."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from runners.decoder.captured_passes import CudaGraph
from runners.decoder.engines import EagerEngine, GraphEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import LiveSequence
from runners.kv_cache import SlotCache
from runners.tokens.choice import NextInputs

NUM_SLOTS = 7


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


class NotedCache(SlotCache):
    num_rolled_back = 0

    def roll_back(self, slot: int) -> None:
        self.num_rolled_back += 1
        super().roll_back(slot)


class Passes(GraphEngine):
    """Logs passes and the copies of results, and notes the passes launched ahead and those rolled
    back; may fail in one of them.
    """

    def __init__(self, decoder: Decoder, num_slots: int = NUM_SLOTS) -> None:
        super().__init__(decoder, num_slots, capture_eagerly)
        self._eager.cache = self.cache = self.noted = NotedCache(decoder.shape, num_slots)
        self.log: list[str] = []
        graphs: Any = self.graphs
        graphs.results_copied = self
        self.num_slots_ahead: list[int] = []
        self.failing: int | None = None  # the number of a pass launched ahead
        self.poisoned: tuple[int, int] | None = None  # likewise, and the slot that it makes NaN

    def launch(self, num_slots: int) -> Tensor:
        self.log.append("pass")
        return super().launch(num_slots)

    def record(self) -> None:
        self.log.append("copy")

    def synchronize(self) -> None:
        self.log.append("wait")

    def look_ahead(self, inputs: NextInputs) -> Tensor:
        self.num_slots_ahead.append(len(inputs.rows))
        if len(self.num_slots_ahead) == self.failing:
            raise RuntimeError("the launch failed")
        launched = super().look_ahead(inputs)
        if self.poisoned is not None and self.poisoned[0] == len(self.num_slots_ahead):
            slot = self.poisoned[1]
            position = self.cache.num_tokens.on_host[slot] - 1
            launched[slot] = math.nan
            self.cache.self_attention._memory[:, :, slot, :, position] = math.nan
            self.poisoned = None
        return launched
