"""A plan as Locust's shape: levels become users; at the end it waits, without users, for the last answers."""

import time
from typing import Protocol

from locust import LoadTestShape

from loadtest.load.plans import Plan

_MAX_SPAWNED_PER_S = 100  # above that Locust warns
_DRAINED_S = 4.0  # above a worker's report interval, in which it may tell of more


class PlanSource(Protocol):
    """Whose plan it is."""

    @property
    def level_per_user(self) -> float:
        """What one user adds to a level."""
        ...

    @property
    def patience_s(self) -> float:
        """How long the last answer may take, and word of it."""
        ...

    def new_plan(self) -> Plan:
        """Return a plan that begins now."""
        ...

    def num_under_way(self) -> int:
        """Return how many requests are not answered yet."""
        ...


class PlanShape(LoadTestShape):
    """Follows a plan, made anew for every test."""

    _source: PlanSource

    def follow(self, source: PlanSource) -> None:
        """Take plans from there."""
        self._source = source

    def reset_time(self) -> None:
        """Begin anew; Locust calls it at the start of a test."""
        super().reset_time()
        self.plan = self._source.new_plan()
        self._over_s: float | None = None

    def tick(self) -> tuple[int, float] | None:
        """Return users and how many of them may start in a second; None ends the test."""
        level = self.plan.level(time.time())
        if level is not None:
            num_users = max(1, round(level / self._source.level_per_user))
            return num_users, min(num_users, _MAX_SPAWNED_PER_S)
        if self._over_s is None:
            self._over_s = self.get_run_time()
        return None if self._is_drained(self.get_run_time() - self._over_s) else (0, _MAX_SPAWNED_PER_S)

    def _is_drained(self, waited_s: float) -> bool:
        return waited_s > self._source.patience_s or (waited_s > _DRAINED_S and self._source.num_under_way() == 0)
