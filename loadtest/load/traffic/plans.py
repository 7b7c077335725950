"""Load over time, and the windows that are measured; pure functions of the time.

A level is requests per second in the open loop, clients in the closed loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """An interval with one level; Unix time."""

    level: float
    start_s: float
    end_s: float

    def contains(self, time_s: float) -> bool:
        return self.start_s <= time_s < self.end_s

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The parts of a step."""

    warm_up_s: float  # before the first step, at its level
    settle_s: float  # until queues are stationary; not measured
    measured_s: float
    tail_s: float  # at the same level, until the outcomes of the measured requests are known


class Stepping:
    """Holds each level for one step, until there is no next level or no time for it."""

    def __init__(
        self,
        next_level: Callable[[Sequence[Window]], float | None],
        times: StepTimes,
        limit_s: float,
    ) -> None:
        self._next_level = next_level
        self._times = times
        self._limit_s = limit_s
        self._windows: list[Window] = []
        self._end_s = 0.0  # end of the whole step
        self._is_over = False

    def level(self, now_s: float) -> float | None:
        """Return the level of the current step."""
        if not self._is_over and now_s >= self._end_s:
            warm_up_s = 0.0 if self._windows else self._times.warm_up_s
            start_s = now_s + warm_up_s + self._times.settle_s
            end_s = start_s + self._times.measured_s
            self._end_s = end_s + self._times.tail_s
            has_time = not self._windows or self._end_s <= self._windows[0].start_s + self._limit_s
            level = self._next_level(self._windows) if has_time else None
            if level is not None:
                self._windows.append(Window(level, start_s, end_s))
            self._is_over = level is None
        return None if self._is_over else self._windows[-1].level

    def windows(self) -> Sequence[Window]:
        """Return one window for each step."""
        return self._windows
