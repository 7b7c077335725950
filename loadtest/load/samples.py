"""The outcome of each request, and their collection from this process or, in a master, from its
workers.

good      the right answer within the SLO of its task; for a stream, also the first token
late      a right answer, but later
refused   429: the service has no capacity; neither an error nor goodput
error     5xx, a wrong answer, no answer
not_sent  due while the maximum of requests was in flight on this side
"""

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal, get_args

from loadtest.load.senders.replies import CONNECTION_FAILED, OK, TIMED_OUT, WRONG_ANSWER
from loadtest.load.traffic.plans import Window
from loadtest.load.traffic.saturation import Step
from loadtest.load.traffic.traffic_mix import Api, Slo

Verdict = Literal["good", "late", "refused", "error", "not_sent"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NOT_SENT = "not_sent"
_VERDICTS_OF_STATUSES: dict[str, Verdict] = {"overloaded": "refused", NOT_SENT: "not_sent"}
# Bugs of the service under any load; all other errors mean that it lacks capacity.
DEFECTS = frozenset({WRONG_ANSWER, "internal", CONNECTION_FAILED, TIMED_OUT})


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times count from when it was due, so delays of both sides are included."""

    api: Api
    task: str
    model: str
    due_s: float  # Unix time
    lag_s: float  # until it was sent
    latency_s: float  # until its whole answer
    first_token_s: float | None  # streams only
    status: str  # ok, not_sent, an error code of the service, or one of `replies`

    def verdict(self, slos_ms: Mapping[str, Slo]) -> Verdict:
        if self.status != OK:
            return _VERDICTS_OF_STATUSES.get(self.status, "error")
        slo = slos_ms[self.task]
        is_late = self.latency_s * 1000 > slo.answer
        is_late |= self.first_token_s is not None and self.first_token_s * 1000 > slo.first_token
        return "late" if is_late else "good"


@dataclass(slots=True)
class Recorder:
    """The samples so far.

    A worker's report carries its clock, by which its times are converted to the master's; the error
    is the time of the report's transport, some milliseconds.
    """

    due_s: list[float] = field(default_factory=list)  # every request, answered or not; Unix time
    samples: list[Sample] = field(default_factory=list)

    @property
    def num_in_flight(self) -> int:
        return len(self.due_s) - len(self.samples)

    def step(self, window: Window, slos_ms: Mapping[str, Slo]) -> Step:
        """Return how many requests of a window were due, and how many of them are good so far."""
        samples = (sample for sample in self.samples if window.contains(sample.due_s))
        num_good = sum(sample.verdict(slos_ms) == "good" for sample in samples)
        return Step(window.level, self.num_due(window), num_good)

    def num_due(self, window: Window) -> int:
        return sum(window.contains(due_s) for due_s in self.due_s)

    def clear(self) -> None:
        self.due_s = []
        self.samples = []

    def take_report(self) -> dict[str, Any]:
        """Return and clear the samples of a worker, for its master."""
        report = {
            "now_s": time.time(),
            "due_s": self.due_s,
            "samples": [astuple(sample) for sample in self.samples],
        }
        self.clear()
        return report

    def add_report(self, report: Mapping[str, Any]) -> None:
        """Add the report of a worker."""
        ahead_s = time.time() - report["now_s"]
        self.due_s.extend(due_s + ahead_s for due_s in report["due_s"])
        samples = (Sample(*row) for row in report["samples"])
        self.samples.extend(replace(sample, due_s=sample.due_s + ahead_s) for sample in samples)
