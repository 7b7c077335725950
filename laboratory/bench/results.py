"""All results of a run, and our service's ratio to the best peer with its target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from laboratory.bench.bench import Skipped
from laboratory.bench.material.records import ModelMaterial
from laboratory.bench.measures import Numbers, numbers_of
from laboratory.bench.rounds.measurement import Measurement
from laboratory.bench.rounds.servers import OURS, OURS_DEFAULT
from laboratory.bench.rounds.workloads import WorkloadName

Measure = Literal["requests_per_s", "tokens_per_s", "short_p95_s", "p50_s"]  # fields of `Numbers`
TIMES: frozenset[Measure] = frozenset({"short_p95_s", "p50_s"})  # less is better

TITLES: dict[WorkloadName, str] = {
    "mixed": "(a) mixed",
    "one_image": "(b) one image",
    "decode_heavy": "(c) decode-heavy",
    "single": "(d) single",
}
MEASURES: dict[Measure, tuple[str, float]] = {  # name and factor
    "requests_per_s": ("requests/s", 1.0),
    "tokens_per_s": ("tokens/s", 1.0),
    "short_p95_s": ("p95 of short ones, ms", 1000.0),
    "p50_s": ("p50, ms", 1000.0),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Bound of a ratio: at least `bound` for a rate, at most `bound` for a time."""

    workload: WorkloadName
    measure: Measure
    model: str
    bound: float
    precision: Literal["float32", "default"] = "float32"

    def is_met(self, ratio: float) -> bool | None:
        """Return None if there is no ratio."""
        if math.isnan(ratio):
            return None
        return ratio <= self.bound if self.measure in TIMES else ratio >= self.bound

    @property
    def bound_text(self) -> str:
        """`≥ 2`, `≤ 0.25`."""
        sign = "≤" if self.measure in TIMES else "≥"
        return f"{sign} {self.bound:g}"


_BASE = "florence-2-base-random"
TARGETS = (
    Target("mixed", "requests_per_s", _BASE, 1.1),
    Target("mixed", "requests_per_s", _BASE, 3, "default"),
    Target("mixed", "requests_per_s", "florence-2-mini", 1.2),
    Target("mixed", "requests_per_s", "paligemma-mini", 1.35),
    Target("one_image", "requests_per_s", _BASE, 6),
    Target("one_image", "requests_per_s", "florence-2-mini", 1.9),
    Target("one_image", "requests_per_s", "paligemma-mini", 1.6),
    Target("decode_heavy", "tokens_per_s", _BASE, 2),
    Target("decode_heavy", "tokens_per_s", "florence-2-mini-endless", 2),
    Target("decode_heavy", "tokens_per_s", "paligemma-mini-endless", 2),
    Target("decode_heavy", "short_p95_s", _BASE, 0.25),
    Target("decode_heavy", "short_p95_s", "florence-2-mini-endless", 0.25),
    Target("decode_heavy", "short_p95_s", "paligemma-mini-endless", 0.25),
    Target("single", "p50_s", _BASE, 1),
    Target("single", "p50_s", "florence-2-mini", 0.7),
    Target("single", "p50_s", "paligemma-mini", 0.85),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our service and the best peer by one measure."""

    target: Target
    best_peer: str
    peer_value: float
    our_value: float

    @property
    def ratio(self) -> float:
        """Ours divided by theirs."""
        return self.our_value / self.peer_value

    @property
    def is_met(self) -> bool | None:
        return self.target.is_met(self.ratio)


@dataclass(frozen=True, slots=True)
class Run:
    """All results of a run."""

    models: Sequence[ModelMaterial]
    measurements: Sequence[Measurement]
    facts: Mapping[str, str]  # machine and command
    skipped: Sequence[Skipped] = ()

    def ours(self) -> list[Measurement]:
        return [each for each in self.measurements if is_ours(each)]

    def peers_of(self, model_id: str) -> list[Measurement]:
        return [each for each in self.measurements if each.model == model_id and not is_ours(each)]


def is_ours(measurement: Measurement) -> bool:
    return measurement.server.kind == "diptych"


def comparisons(run: Run) -> list[Comparison]:
    """Return every target's ratio, per model that ran its workload on ours and a peer."""
    found = []
    for target, ours in product(TARGETS, run.ours()):
        workload = target.workload
        name = OURS.name if target.precision == "float32" else OURS_DEFAULT.name
        is_meant = ours.server.name == name and ours.model == target.model
        if not is_meant or workload not in ours.rounds:
            continue
        peers = {
            peer.server.name: numbers_of(peer.rounds[workload])
            for peer in run.peers_of(ours.model)
            if workload in peer.rounds
        }
        if peers:
            found.append(compare(target, numbers_of(ours.rounds[workload]), peers))
    return found


def compare(target: Target, ours: Numbers, peers: Mapping[str, Numbers]) -> Comparison:
    """Compare with the peer, at any of its settings, that is best by the target's measure."""
    values = {name: float(getattr(numbers, target.measure)) for name, numbers in peers.items()}
    choose = min if target.measure in TIMES else max
    best = choose(values, key=lambda name: values[name])
    return Comparison(target, best, values[best], float(getattr(ours, target.measure)))


def as_json(run: Run) -> dict[str, Any]:
    """Return the run as JSON values: aggregates, not single requests."""
    servers = []
    for each in run.measurements:
        workloads = {name: asdict(numbers_of(rounds)) for name, rounds in each.rounds.items()}
        servers.append(
            {
                "model": each.model,
                "server": each.server.name,
                "setting": each.server.description,
                "precision": each.precision,
                "start_s": each.start_s,
                "workloads": workloads,
            }
        )
    return {
        "facts": dict(run.facts),
        "comparisons": [
            asdict(one) | {"ratio": one.ratio, "is_met": one.is_met} for one in comparisons(run)
        ],
        "servers": servers,
        "skipped": [asdict(one) for one in run.skipped],
    }
