"""The order of all measurements: each model, each of its servers, each workload, within the given
time.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from laboratory.bench.material.records import ModelMaterial
from laboratory.bench.rounds.client import Round
from laboratory.bench.rounds.measurement import Measurement, started
from laboratory.bench.rounds.servers import Server, servers_of
from laboratory.bench.rounds.workloads import (
    RoundPlan,
    WorkloadName,
    base_plan,
    embedded_plan,
)

_START_S = 20.0  # a server of real size starts; no time for requests
_RESERVE_S = 60.0  # reports, and delays


@dataclass(frozen=True, slots=True)
class Skipped:
    """A server, or a workload of it, that did not run."""

    model: str
    server: str
    reason: str


class Bench:
    """One run."""

    def __init__(self, models: Sequence[ModelMaterial], folder: Path, deadline_s: float) -> None:
        self._models = models
        self._folder = folder
        self._deadline_s = deadline_s  # time.monotonic()
        self._base_plan: tuple[RoundPlan, ...] = ()
        self.skipped: list[Skipped] = []

    def run(self) -> Iterator[Measurement]:
        """Yield the results of each server.

        Those without remaining time are listed in `skipped`.
        """
        todo = list[tuple[ModelMaterial, Server]]()
        for model in self._models:
            todo += [(model, server) for server in servers_of(model)]
        for index, (model, server) in enumerate(todo):
            if self._left_s() < _START_S:
                self.skipped.append(Skipped(model.id, server.name, "no time was left"))
            else:
                num_left = sum(other.scale == model.scale for other, _ in todo[index:])
                yield self._measured(model, server, self._left_s() / num_left - _START_S)

    def _measured(self, model: ModelMaterial, server: Server, allowance_s: float) -> Measurement:
        start_s = time.monotonic()
        with started(model, server, self._folder) as measured:
            request_s = measured.warm_up()
            ready_s = time.monotonic() - start_s
            if model.scale == "embedded":
                plan = embedded_plan(model.is_endless)
            else:  # the first server determines it for all
                self._base_plan = self._base_plan or base_plan(request_s, allowance_s)
                plan = self._base_plan
            rounds = dict[WorkloadName, tuple[Round, ...]]()
            for step in plan:
                answered = tuple[Round, ...]()
                if (left_s := self._left_s()) > 0:
                    driven = measured.run(replace(step, limit_s=min(step.limit_s, left_s)))
                    answered = tuple(one for one in driven if one.samples)
                if answered:
                    rounds[step.workload] = answered
                else:
                    reason = f"{step.workload}: no time was left"
                    self.skipped.append(Skipped(model.id, server.name, reason))
            precision = measured.precision()
        return Measurement(model.id, server, request_s, ready_s, rounds, precision)

    def _left_s(self) -> float:
        return self._deadline_s - _RESERVE_S - time.monotonic()
