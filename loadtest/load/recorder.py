"""Collects samples: of this process, and, in the master of a distributed run, those that workers report.

A report carries the worker's clock, by which its times are moved to the master's; the time of its transport, some
milliseconds, is the error of that.
"""

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from loadtest.load.plans import Window
from loadtest.load.samples import Sample
from loadtest.load.saturation import Step
from loadtest.load.traffic_mix import Slo


@dataclass(slots=True)
class Recorder:
    """What is known so far."""

    due_s: list[float] = field(default_factory=list)  # of every request that was due, answered or not; Unix time
    samples: list[Sample] = field(default_factory=list)

    @property
    def num_under_way(self) -> int:
        """Requests of which it is not known yet what became of them."""
        return len(self.due_s) - len(self.samples)

    def step(self, window: Window, slos_ms: Mapping[str, Slo]) -> Step:
        """Return how many requests of a window were due, and how many were good by now."""
        samples = (sample for sample in self.samples if window.contains(sample.due_s))
        num_good = sum(sample.verdict(slos_ms) == "good" for sample in samples)
        return Step(window.level, self.num_due(window), num_good)

    def num_due(self, window: Window) -> int:
        """Return how many requests were due in a window."""
        return sum(window.contains(due_s) for due_s in self.due_s)

    def clear(self) -> None:
        """Forget all."""
        self.due_s, self.samples = [], []

    def take_report(self) -> dict[str, Any]:
        """Return what a worker sends to its master, and forget it."""
        report = {"now_s": time.time(), "due_s": self.due_s, "samples": [astuple(sample) for sample in self.samples]}
        self.due_s, self.samples = [], []
        return report

    def add_report(self, report: Mapping[str, Any]) -> None:
        """Add what a worker has sent."""
        ahead_s = time.time() - report["now_s"]
        self.due_s.extend(due_s + ahead_s for due_s in report["due_s"])
        samples = (Sample(*row) for row in report["samples"])
        self.samples.extend(replace(sample, due_s=sample.due_s + ahead_s) for sample in samples)
