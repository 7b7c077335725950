"""Which replica of a runner is asked next. It knows no network: calls and probes tell it what they have found.

    affinity   an image's hash names a replica (rendezvous hashing), which is asked unless it has more than its share of
               the work (bounded loads)
    load       else the one with the least outstanding work
    ejection   one that a call did not reach is out for a time that doubles with each in a row, one that misses probes
               until it answers one; nobody is let in before a probe has found it ready
    nobody     where none is healthy, the one whose failure is longest ago is asked: it may be back

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Trans. Networking 1998;
Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from blake3 import blake3

_SHARE = 1.25  # of the mean work, that an affine replica may come to have
_OUT_S, _MAX_OUT_S = 1.0, 30.0
_MAX_MISSED = 2  # probes in a row; one may come late on a busy host
_WEIGHT_BYTES = 8

RunnerT = TypeVar("RunnerT")


class Health:
    """What calls and probes have said of one replica."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.is_healthy = False
        self.failed_s = -math.inf
        self._num_missed = 0
        self._out_s = _OUT_S  # of the next ejection by a call
        self._out_until_s = -math.inf

    def note_answer(self) -> None:
        """Note that a call was answered."""
        if self.is_healthy:
            self._out_s = _OUT_S

    def note_failure(self) -> None:
        """Note that a call was not: the replica is out. Those that fail with the first say nothing new."""
        self.failed_s = self._now()
        if self.is_healthy:
            self._out_until_s, self._out_s = self.failed_s + self._out_s, min(2 * self._out_s, _MAX_OUT_S)
            self.is_healthy = False

    def note_probe(self, is_ready: bool) -> None:
        """Note what a probe has found."""
        self._num_missed = 0 if is_ready else self._num_missed + 1
        if is_ready:
            self.is_healthy = self.is_healthy or self._now() >= self._out_until_s
        elif self._num_missed >= _MAX_MISSED:
            self.failed_s = self._now()
            self.is_healthy = False


class Replica(Generic[RunnerT]):
    """One replica of a runner."""

    def __init__(self, address: str, runner: RunnerT, health: Health) -> None:
        self.address = address
        self.runner = runner
        self.health = health
        self.outstanding = 0  # work
        self.last_turn = 0  # the number of the choice that it was last chosen in


class Replicas(Generic[RunnerT]):
    """All replicas of a runner; who they are may change at any time."""

    def __init__(self) -> None:
        self.members: Sequence[Replica[RunnerT]] = ()
        self._num_choices = 0

    @property
    def num_healthy(self) -> int:
        """How many are."""
        return sum(member.health.is_healthy for member in self.members)

    def choose(
        self, cost: int, key: bytes | None = None, tried: Collection[Replica[RunnerT]] = ()
    ) -> Replica[RunnerT] | None:
        """Return the replica for `cost` of work: not one that was tried, if there is another; None if there is none.

        `key` is the hash of what replicas may remember.
        """
        members = [member for member in self.members if member not in tried] or self.members
        if not members:
            return None
        healthy = [member for member in members if member.health.is_healthy]
        chosen = _best(healthy, cost, key) if healthy else min(members, key=lambda member: member.health.failed_s)
        self._num_choices += 1
        chosen.last_turn = self._num_choices
        return chosen


def _best(healthy: Sequence[Replica[RunnerT]], cost: int, key: bytes | None) -> Replica[RunnerT]:
    if key is not None:
        affine = max(healthy, key=lambda member: _weight(member.address, key))
        if affine.outstanding + cost <= _bound(healthy, cost):
            return affine
    return min(healthy, key=lambda member: (member.outstanding, member.last_turn))


def _bound(healthy: Sequence[Replica[RunnerT]], cost: int) -> float:
    """Return the most outstanding work that an affine replica may come to have; an idle one takes whatever comes."""
    mean = (sum(member.outstanding for member in healthy) + cost) / len(healthy)
    return max(cost, _SHARE * mean)


def _weight(address: str, key: bytes) -> bytes:
    return blake3(address.encode() + b"\0" + key).digest(_WEIGHT_BYTES)
