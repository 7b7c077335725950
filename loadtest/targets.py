"""Ours divided by the best peer, and whether that reaches its target."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from loadtest.material import Scale
from loadtest.measures import Numbers
from loadtest.workloads import WorkloadName

Measure = Literal["requests_per_s", "tokens_per_s", "short_p95_s", "p50_s"]
Precision = Literal["float32", "default"]
_IS_TIME: dict[Measure, bool] = {"requests_per_s": False, "tokens_per_s": False, "short_p95_s": True, "p50_s": True}


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio has to be: at least `bound` for a rate, at most `bound` for a time."""

    workload: WorkloadName
    measure: Measure
    scale: Scale
    bound: float | None  # None: shown without a target
    precision: Precision = "float32"

    def is_met(self, ratio: float) -> bool | None:
        """Say whether the ratio reaches the target; None where there is none, or no ratio."""
        if self.bound is None or math.isnan(ratio):
            return None
        return ratio <= self.bound if _IS_TIME[self.measure] else ratio >= self.bound

    @property
    def bound_text(self) -> str:
        """`≥ 2`, `≤ 0.25`."""
        return "" if self.bound is None else f"{'≤' if _IS_TIME[self.measure] else '≥'} {self.bound:g}"


TARGETS = (
    Target("mixed", "requests_per_s", "embedded", 2),
    Target("mixed", "requests_per_s", "base", 1.1),
    Target("mixed", "requests_per_s", "base", 2.5, "default"),
    Target("one_image", "requests_per_s", "embedded", None),
    Target("one_image", "requests_per_s", "base", 5),
    Target("decode_heavy", "tokens_per_s", "embedded", 2),
    Target("decode_heavy", "short_p95_s", "embedded", 0.25),
    Target("decode_heavy", "tokens_per_s", "base", 2),
    Target("decode_heavy", "short_p95_s", "base", 0.25),
    Target("single", "p50_s", "embedded", 1),
    Target("single", "p50_s", "base", 1),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ratio."""

    target: Target
    model: str
    best_peer: str
    peer_value: float
    our_value: float

    @property
    def ratio(self) -> float:
        """Ours divided by theirs."""
        return self.our_value / self.peer_value

    @property
    def is_met(self) -> bool | None:
        """Say whether the target is reached."""
        return self.target.is_met(self.ratio)


def compare(target: Target, model: str, ours: Numbers, peers: Mapping[str, Numbers]) -> Comparison:
    """Compare with the peer that is best by the target's own measure: each at its best setting."""
    values = {name: float(getattr(numbers, target.measure)) for name, numbers in peers.items()}
    choose = min if _IS_TIME[target.measure] else max
    best = choose(values, key=lambda name: values[name])
    return Comparison(target, model, best, values[best], float(getattr(ours, target.measure)))
