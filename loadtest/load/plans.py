"""How much load there is at which time, and the windows of time that are measured; without Locust, without sleeping.

A level is requests a second in the open loop, clients in the closed one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time with one level; Unix time."""

    level: float
    start_s: float
    end_s: float

    def contains(self, time_s: float) -> bool:
        """Say whether a moment lies in it."""
        return self.start_s <= time_s < self.end_s

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end_s - self.start_s

    def at_level(self, level: float) -> "Window":
        """Return it with another level."""
        return replace(self, level=level)


class Plan(Protocol):
    """What a shape follows."""

    def level(self, now_s: float) -> float | None:
        """Return the level at a time that does not go back; None when the plan is over."""
        ...

    def windows(self) -> Sequence[Window]:
        """Return the windows so far, the last of which may end in the future."""
        ...


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The parts of a step."""

    warm_up_s: float  # before the first step, at its level: what is slow the first time
    settle_s: float  # until queues are as they stay; not measured
    measured_s: float
    tail_s: float  # at the same level, until it is known what became of the measured requests


class Stepping:
    """Holds a level, then asks which is next, until there is none or no time for it."""

    def __init__(
        self, next_level: Callable[[Sequence[Window]], float | None], times: StepTimes, limit_s: float
    ) -> None:
        self._next_level = next_level
        self._times = times
        self._limit_s = limit_s
        self._windows: list[Window] = []
        self._end_s = 0.0  # of the whole step
        self._is_over = False

    def level(self, now_s: float) -> float | None:
        """Return the level of the step that it is now."""
        if not self._is_over and now_s >= self._end_s:
            self._begin_step(now_s)
        return None if self._is_over else self._windows[-1].level

    def windows(self) -> Sequence[Window]:
        """Return one window a step."""
        return self._windows

    def _begin_step(self, now_s: float) -> None:
        warm_up_s = 0.0 if self._windows else self._times.warm_up_s
        window_start_s = now_s + warm_up_s + self._times.settle_s
        window_end_s = window_start_s + self._times.measured_s
        self._end_s = window_end_s + self._times.tail_s
        has_time = not self._windows or self._end_s <= self._windows[0].start_s + self._limit_s
        level = self._next_level(self._windows) if has_time else None
        if level is None:
            self._is_over = True
        else:
            self._windows.append(Window(level, window_start_s, window_end_s))


class Slope:
    """Goes evenly from one level to another, or stays at it: a ramp, a soak."""

    def __init__(self, first: float, last: float, seconds: float, num_windows: int) -> None:
        self._first, self._last = first, last
        self._seconds = seconds
        self._num_windows = num_windows
        self._start_s: float | None = None

    def level(self, now_s: float) -> float | None:
        """Return the level that the slope has now; the first call is its start."""
        if self._start_s is None:
            self._start_s = now_s
        share = (now_s - self._start_s) / self._seconds
        return self._level(share) if share < 1 else None

    def windows(self) -> Sequence[Window]:
        """Return equal parts of the time."""
        if self._start_s is None:
            return []
        part_s = self._seconds / self._num_windows
        starts = [self._start_s + index * part_s for index in range(self._num_windows)]
        levels = [self._level((index + 0.5) / self._num_windows) for index in range(self._num_windows)]
        return [Window(level, start_s, start_s + part_s) for level, start_s in zip(levels, starts, strict=True)]

    def _level(self, share: float) -> float:
        return self._first + (self._last - self._first) * share
