import math
from collections.abc import Callable, Sequence
from itertools import count

import pytest

from service.replicas import Health, Replica, Replicas


class Clock:
    """Says what the test set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def replica(address: str, outstanding: int = 0, is_healthy: bool = True, failed_s: float = -math.inf) -> Replica[str]:
    made = Replica(address, address, Health())
    made.outstanding = outstanding
    made.health.is_healthy = is_healthy
    made.health.failed_s = failed_s
    return made


def replicas(*members: Replica[str]) -> Replicas[str]:
    made = Replicas[str]()
    made.members = members
    return made


def chosen(among: Replicas[str], cost: int = 1, key: bytes | None = None, tried: Sequence[Replica[str]] = ()) -> str:
    found = among.choose(cost, key, tried)
    assert found is not None
    return found.address


def key_of(address: str, among: Sequence[str]) -> bytes:
    """Return a key whose affine replica is `address`."""
    idle = replicas(*map(replica, among))
    return next(key for key in (b"%d" % number for number in count()) if chosen(idle, key=key) == address)


@pytest.mark.parametrize(
    ("outstanding", "expected"),
    [([0, 0, 0], "a"), ([1, 0, 0], "b"), ([3, 2, 1], "c"), ([5, 5, 6], "a")],
)
def test_the_least_outstanding_work_decides(outstanding: list[int], expected: str) -> None:
    assert chosen(replicas(*map(replica, "abc", outstanding))) == expected


def test_equals_take_turns() -> None:
    among = replicas(*map(replica, "abc"))
    assert [chosen(among) for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


@pytest.mark.parametrize(
    ("affine", "other", "cost", "expected"),
    [
        (0, 0, 1, "a"),
        (0, 0, 9, "a"),  # however much it is, where it is idle
        (1, 0, 1, "b"),  # 2 > 1.25 * 1
        (3, 3, 1, "a"),  # 4 <= 1.25 * 3.5
        (5, 4, 1, "a"),  # 6 <= 1.25 * 5
        (5, 3, 1, "b"),  # 6 > 1.25 * 4.5
        (2, 8, 4, "a"),  # 6 <= 1.25 * 7
        (8, 4, 4, "b"),  # 12 > 1.25 * 8
    ],
)
def test_the_affine_replica_is_asked_unless_it_has_more_than_its_share(
    affine: int, other: int, cost: int, expected: str
) -> None:
    among = replicas(replica("a", affine), replica("b", other))
    assert chosen(among, cost, key_of("a", "ab")) == expected


def test_a_key_keeps_its_replica_while_others_come_and_go() -> None:
    keys = [b"%d" % number for number in range(300)]
    few, more = replicas(*map(replica, "abc")), replicas(*map(replica, "abcd"))
    before = {key: chosen(few, key=key) for key in keys}
    after = {key: chosen(more, key=key) for key in keys}
    assert {after[key] for key in keys if after[key] != before[key]} == {"d"}
    moved = sum(after[key] != before[key] for key in keys)
    assert 300 / 4 / 2 < moved < 300 / 4 * 2  # a quarter, of keys that fall as they like
    assert set(before.values()) == set("abc")


def test_one_that_is_out_is_not_asked_and_its_keys_are_spread() -> None:
    keys = [b"%d" % number for number in range(100)]
    among = replicas(replica("a"), replica("b", is_healthy=False), replica("c"))
    assert {chosen(among, key=key) for key in keys} == {"a", "c"}
    assert {chosen(among) for _ in range(4)} == {"a", "c"}


def test_one_that_was_tried_is_not_asked_again_if_there_is_another() -> None:
    first, second = replica("a"), replica("b", outstanding=9)
    assert chosen(replicas(first, second), tried=[first]) == "b"
    assert chosen(replicas(first), tried=[first]) == "a"


def test_where_none_is_healthy_the_least_recently_failed_is_asked() -> None:
    members = [
        replica(address, is_healthy=False, failed_s=failed_s) for address, failed_s in (("a", 3), ("b", 1), ("c", 2))
    ]
    assert chosen(replicas(*members)) == "b"
    assert chosen(replicas(*members), tried=[members[1]]) == "c"


def test_without_replicas_there_is_no_choice() -> None:
    assert replicas().choose(1) is None


def test_nobody_is_healthy_before_a_probe_says_so() -> None:
    health = Health()
    assert not health.is_healthy
    health.note_probe(is_ready=True)
    assert health.is_healthy


@pytest.mark.parametrize(
    ("probes", "expected"), [("", True), ("n", True), ("nn", False), ("nyn", True), ("nny", True), ("nnyn", True)]
)
def test_two_missed_probes_in_a_row_eject_and_one_answered_lets_in(probes: str, expected: bool) -> None:
    health = healthy(Clock())
    for probe in probes:
        health.note_probe(is_ready=probe == "y")
    assert health.is_healthy is expected


def test_each_ejection_in_a_row_takes_twice_as_long_up_to_a_bound() -> None:
    clock = Clock()
    health = healthy(clock)
    assert [ejected_s(health, clock) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    health.note_answer()
    assert ejected_s(health, clock) == 1


def test_failures_of_calls_that_were_under_way_are_one_ejection() -> None:
    clock = Clock()
    health = healthy(clock)
    health.note_failure()
    for _ in range(9):
        health.note_failure()
    health.note_answer()  # nor does an answer that was under way end it
    clock.now_s += 1
    health.note_probe(is_ready=True)
    assert health.is_healthy
    assert ejected_s(health, clock) == 2


def healthy(now: Callable[[], float]) -> Health:
    health = Health(now)
    health.note_probe(is_ready=True)
    return health


def ejected_s(health: Health, clock: Clock) -> int:
    """Fail a call; return after how many whole seconds a probe lets the replica in."""
    health.note_failure()
    for seconds in count():
        health.note_probe(is_ready=True)
        if health.is_healthy:
            return seconds
        clock.now_s += 1
    raise AssertionError
