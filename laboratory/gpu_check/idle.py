"""The share of a step in which the device has nothing to do: from the end of a pass until the next
choice of tokens.

The next pass of the model is launched right after a choice, before the host knows the tokens: what
Python does between two choices takes time from the device only where it takes longer than the pass.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from laboratory.gpu_check.parts import Model, admitted, make_endless, synchronize
from laboratory.gpu_check.verdicts import Verdict
from runners.decoder.captured_passes import Capture, capture_cuda_graph
from runners.decoder.engines import GraphEngine, GraphPass
from runners.decoder.protocol import Decoder
from runners.tokens.choice import Chosen, NextInputs, RowConditions
from wire.artifacts.manifest import Device

_new_mark: Any = partial(torch.cuda.Event, enable_timing=True)  # torch has no types here
_ROWS = (1, 16, 64)
_NUM_STEPS = 48
_KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "constrained": {"grammar": "start: /(?s:.)*/"},
    "of 3 beams": {"num_beams": 3},
}


class MarkedEngine(GraphEngine):
    """An engine that marks the end of each pass and the start of each choice."""

    def __init__(
        self,
        decoder: Decoder,
        num_slots: int,
        new_mark: Callable[[], Any],
        capture: Capture = capture_cuda_graph,
    ) -> None:
        super().__init__(decoder, num_slots, capture)
        self._new_mark = new_mark
        self.marks: list[tuple[str, Any]] = []  # torch's events, or a host's

    def launch(self, num_slots: int) -> GraphPass:
        """Launch a pass."""
        launched = super().launch(num_slots)
        self._mark("pass")
        return launched

    def choose(
        self,
        launched: GraphPass,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        following: Callable[[], NextInputs] | None = None,
    ) -> Chosen[GraphPass]:
        """Choose the tokens of a pass; those of a prefill are not marked."""
        if not launched.is_first:
            self._mark("choice")
        return super().choose(launched, conditions, sequences, following)

    def _mark(self, name: str) -> None:
        self.marks.append((name, self._new_mark()))
        self.marks[-1][1].record()

    def times_ms(self) -> tuple[float, float]:
        """Return the time between the ends of passes and the choices after them, and the time
        between all marks.
        """
        pairs = zip(self.marks, self.marks[1:], strict=False)
        idle_ms = sum(
            one.elapsed_time(other) for (name, one), (_, other) in pairs if name == "pass"
        )
        return idle_ms, self.marks[0][1].elapsed_time(self.marks[-1][1])


def check_idle(model: Model, device: Device, aim: float) -> Verdict:
    """Measure the idle share of steps by their rows and kind; the aim is that of 16 greedy rows."""
    decoder = model.decoder(device)
    make_endless(decoder)
    measured = {}
    for name, options in _KINDS.items():
        for num_rows in _ROWS:
            share = _idle_share(model, decoder, device, options, num_rows)
            measured[f"{num_rows} {name}"] = share
    return Verdict(
        "idle share of a step",
        model.id,
        measured,
        f"16 greedy <= {aim}",
        measured["16 greedy"] <= aim,
    )


def _idle_share(
    model: Model, decoder: Decoder, device: Device, options: dict[str, Any], num_rows: int
) -> float:
    num_beams = options.get("num_beams", 1)
    num_sequences = max(1, num_rows // num_beams)
    marked = MarkedEngine(decoder, num_sequences * num_beams, _new_mark)
    kinds = [options] * num_sequences
    batch = admitted(decoder, model, device, kinds, _NUM_STEPS, lambda *_: marked)
    marked.marks.clear()
    for _ in range(_NUM_STEPS):
        batch.step()
    synchronize(device)
    idle_ms, all_ms = marked.times_ms()
    return round(idle_ms / all_ms, 3)
