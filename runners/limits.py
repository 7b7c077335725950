"""How much a decoder takes at once. Read by processes that have no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Of one decoder."""

    num_slots: int  # live sequences
    max_waiting: int  # sequences; more are refused
    max_prefill_tokens: int  # image and prompt, of one prefill, padding included; one sequence alone may have more
    stuck_after_s: float = 60.0  # of one prefill and step
