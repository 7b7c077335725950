"""What became of one request, and whether that was good.

good      the right answer within the SLO of its task; of a stream the first token too
late      a right answer, but later
refused   429: the service says at once that it has no room; no failure of it, and no goodput
error     5xx, a wrong answer, no answer
not_sent  so many requests were under way that this side did not send another
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from loadtest.load.replies import OK
from loadtest.load.traffic_mix import Api, Slo

Verdict = Literal["good", "late", "refused", "error", "not_sent"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NOT_SENT = "not_sent"
_VERDICTS_OF_STATUSES: dict[str, Verdict] = {"overloaded": "refused", NOT_SENT: "not_sent"}
# What a service must not do under any load; all other errors say that it could not.
DEFECTS = frozenset({"wrong_answer", "internal", "connection_failed", "timed_out"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times count from when it was due, so that a slow service or sender does not hide what it costs."""

    api: Api
    task: str
    model: str
    due_s: float  # Unix time
    lag_s: float  # until it was sent
    latency_s: float  # until all was there
    first_token_s: float | None  # of a stream
    status: str  # ok, not_sent, a code of the service's contract, or one of `replies`

    def verdict(self, slos_ms: Mapping[str, Slo]) -> Verdict:
        """Return what it was."""
        if self.status != OK:
            return _VERDICTS_OF_STATUSES.get(self.status, "error")
        slo = slos_ms[self.task]
        is_late = self.latency_s * 1000 > slo.answer
        is_late |= self.first_token_s is not None and self.first_token_s * 1000 > slo.first_token
        return "late" if is_late else "good"
