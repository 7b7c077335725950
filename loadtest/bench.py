"""The run: every model, every server in turn, every workload, within the time that was given.

What a server did lies in FOLDER/stands/MODEL--SERVER.json as soon as it is done; a resumed run goes on from there.
"""

import json
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtest.client import Round
from loadtest.material import ModelMaterial
from loadtest.plan import RoundPlan, base_plan, embedded_plan
from loadtest.servers import NUM_CORES, Server, more_peers, peers
from loadtest.stands import Stand, file_name, opened, read_stand, write_stand
from loadtest.workloads import WorkloadName

_FLOAT32 = {"DIPTYCH_ENCODER_PRECISION": "float32", "DIPTYCH_DECODER_PRECISION": "float32"}
OURS = Server("diptych", "diptych", "float32, else default settings", environment=_FLOAT32)
OURS_DEFAULT = Server("diptych default", "diptych", "default settings")
_START_S = 20.0  # of a server of real size, which is not left for requests
_RESERVE_S = 60.0  # for reports, and for what takes longer than planned


@dataclass(frozen=True, slots=True)
class Skipped:
    """A server that was not run, and why."""

    model: str
    server: str
    reason: str


class Bench:
    """One run."""

    def __init__(self, models: Sequence[ModelMaterial], folder: Path, deadline_s: float, is_quick: bool) -> None:
        self._models = models
        self._folder = folder
        self._deadline_s = deadline_s  # on the clock of time.monotonic()
        self._is_quick = is_quick
        self.skipped: list[Skipped] = []

    def forget(self) -> None:
        """Remove what an earlier run has kept."""
        shutil.rmtree(self._folder / "stands", ignore_errors=True)

    def run(self) -> Iterator[Stand]:
        """Yield what each server did; those for which no time is left are noted in `skipped`."""
        todo = [(model, server) for model in self._models for server in servers_of(model, self._is_quick)]
        for index, (model, server) in enumerate(todo):
            file = self._file(model, server)
            if file.exists():
                yield read_stand(file)
            elif self._left_s() < _START_S:
                self.skipped.append(Skipped(model.id, server.name, "no time was left"))
            else:
                num_left = sum(other.scale == model.scale for other, _ in todo[index:])
                stand = self._stand(model, server, self._left_s() / num_left - _START_S)
                write_stand(stand, file)
                yield stand

    def _stand(self, model: ModelMaterial, server: Server, allowance_s: float) -> Stand:
        start_s = time.monotonic()
        with opened(model, server, self._folder) as stand:
            request_s = stand.warm_up()
            ready_s = time.monotonic() - start_s
            plan = self._plan(model, request_s, allowance_s)
            driven = {step.workload: stand.run(step) for step in self._affordable(plan)}
            rounds = {workload: done for workload, listed in driven.items() if (done := _answered(listed))}
            self._note_missing(model, server, plan, rounds)
            return Stand(model.id, server, request_s, ready_s, rounds, stand.batch_sizes(), stand.precision())

    def _note_missing(
        self, model: ModelMaterial, server: Server, plan: Sequence[RoundPlan], rounds: Collection[WorkloadName]
    ) -> None:
        """Note the workloads of which nothing was answered."""
        missing = (step.workload for step in plan if step.workload not in rounds)
        self.skipped.extend(Skipped(model.id, server.name, f"{name}: no time was left") for name in missing)

    def _affordable(self, plan: Sequence[RoundPlan]) -> Iterator[RoundPlan]:
        """Yield the workloads for which time is left, each with no more than that."""
        for step in plan:
            if (left_s := self._left_s()) > 0:
                yield replace(step, limit_s=min(step.limit_s, left_s))

    def _plan(self, model: ModelMaterial, request_s: float, allowance_s: float) -> tuple[RoundPlan, ...]:
        """Return the plan of a model, which its first server makes and all others follow."""
        if model.scale == "embedded":
            return embedded_plan(model.is_endless, self._is_quick)
        file = self._folder / "stands" / f"{model.scale}-plan.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps([asdict(step) for step in base_plan(request_s, allowance_s)]), encoding="utf-8")
        return tuple(RoundPlan(**step) for step in json.loads(file.read_text(encoding="utf-8")))

    def _left_s(self) -> float:
        return self._deadline_s - _RESERVE_S - time.monotonic()

    def _file(self, model: ModelMaterial, server: Server) -> Path:
        return self._folder / "stands" / f"{model.id}--{file_name(server)}.json"


def servers_of(model: ModelMaterial, is_quick: bool) -> tuple[Server, ...]:
    """Return the servers that a model is run on, the one that makes the plan first, then ours.

    At base scale and for long answers fewer settings of the peers are tried.
    """
    first, *tried = peers(NUM_CORES)[:2] if is_quick else peers(NUM_CORES)
    is_widely_tried = model.scale == "embedded" and not is_quick and not model.is_endless
    ours = (OURS, OURS_DEFAULT) if model.scale == "base" else (OURS,)
    return (first, *ours, *tried, *(more_peers(NUM_CORES) if is_widely_tried else ()))


def _answered(rounds: Sequence[Round]) -> tuple[Round, ...]:
    """Return the rounds in which something was answered before the time was over."""
    return tuple(one for one in rounds if one.samples)
