"""Everything that a run found, as values, and the ratios in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.bench import OURS, OURS_DEFAULT, Skipped
from loadtest.limits import Share
from loadtest.machine import MachineRates
from loadtest.material import ModelMaterial
from loadtest.measures import numbers_of
from loadtest.stands import Stand
from loadtest.steps import StepTimes
from loadtest.targets import TARGETS, Comparison, Target, compare


@dataclass(frozen=True, slots=True)
class Run:
    """One run."""

    models: Sequence[ModelMaterial]
    stands: Sequence[Stand]
    facts: Mapping[str, str]  # of machine and command
    rates: Sequence[MachineRates] = ()
    shares: Sequence[Share] = ()
    steps: Sequence[StepTimes] = ()
    skipped: Sequence[Skipped] = field(default_factory=list)

    def ours(self) -> Iterator[Stand]:
        """Yield the stands of our service."""
        return (stand for stand in self.stands if is_ours(stand))

    def peers_of(self, model_id: str) -> list[Stand]:
        """Return the stands of the peers."""
        return [stand for stand in self.stands if stand.model == model_id and not is_ours(stand)]


def is_ours(stand: Stand) -> bool:
    """Say whether a stand is our service's."""
    return stand.server.name in (OURS.name, OURS_DEFAULT.name)


def comparisons(run: Run) -> list[Comparison]:
    """Return the ratio of every target, for every model that ran its workload on our service and on a peer."""
    return [comparison for target in TARGETS for comparison in _comparisons(run, target)]


def _comparisons(run: Run, target: Target) -> Iterator[Comparison]:
    scales = {model.id: model.scale for model in run.models}
    name = OURS.name if target.precision == "float32" else OURS_DEFAULT.name
    for stand in run.ours():
        if stand.server.name != name or scales[stand.model] != target.scale or target.workload not in stand.rounds:
            continue
        peers = {
            peer.server.name: numbers_of(peer.rounds[target.workload])
            for peer in run.peers_of(stand.model)
            if target.workload in peer.rounds
        }
        if peers:
            yield compare(target, stand.model, numbers_of(stand.rounds[target.workload]), peers)


def as_json(run: Run) -> dict[str, Any]:
    """Return the run as JSON values: aggregates, not every request."""
    return {
        "facts": dict(run.facts),
        "comparisons": [asdict(one) | {"ratio": one.ratio, "is_met": one.is_met} for one in comparisons(run)],
        "servers": [_stand_json(stand) for stand in run.stands],
        "machine": [asdict(rate) for rate in run.rates],
        "limits": [asdict(share) for share in run.shares],
        "decode_steps": [asdict(step) | {"overhead": step.overhead} for step in run.steps],
        "skipped": [asdict(one) for one in run.skipped],
    }


def _stand_json(stand: Stand) -> dict[str, Any]:
    workloads = {name: asdict(numbers_of(rounds)) for name, rounds in stand.rounds.items()}
    return {
        "model": stand.model,
        "server": stand.server.name,
        "setting": stand.server.description,
        "precision": stand.precision,
        "start_s": stand.start_s,
        "mean_batch": dict(stand.batch_sizes),
        "workloads": workloads,
    }
