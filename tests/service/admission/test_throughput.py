import pytest

from service.admission.throughput import ThroughputEstimate


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_nothing_measured_means_no_waiting() -> None:
    assert ThroughputEstimate(Clock()).seconds_for(1000) == 0


def test_work_side_by_side_counts_together() -> None:
    clock = Clock()
    rate = ThroughputEstimate(clock)
    for _ in range(4):
        rate.begin()
    clock.now_s += 2
    for _ in range(4):
        rate.end(10)
    assert rate.seconds_for(20) == pytest.approx(1)


def test_idle_time_does_not_count() -> None:
    clock = Clock()
    rate = ThroughputEstimate(clock)
    for _ in range(2):
        rate.begin()
        clock.now_s += 1
        rate.end(10)
        clock.now_s += 1000
    assert rate.seconds_for(10) == pytest.approx(1)


def test_what_was_done_lately_counts_most() -> None:
    clock = Clock()
    rate = ThroughputEstimate(clock)
    for work_s in [1.0] * 100 + [0.1] * 400:
        rate.begin()
        clock.now_s += work_s
        rate.end(10)
    assert rate.seconds_for(10) == pytest.approx(0.1, rel=0.2)


def test_work_that_failed_took_time_all_the_same() -> None:
    clock = Clock()
    rate = ThroughputEstimate(clock)
    rate.begin()
    rate.begin()
    clock.now_s += 1
    rate.end(0)
    rate.end(10)
    assert rate.seconds_for(10) == pytest.approx(1)


def test_the_first_to_end_of_many_that_were_begun_together_says_nothing_yet() -> None:
    clock = Clock()
    rate = ThroughputEstimate(clock)
    for _ in range(8):
        rate.begin()
    clock.now_s += 2
    said = []
    for _ in range(8):
        rate.end(10)
        rate.begin()
        said.append(rate.seconds_for(80))
    assert said == [0] * 6 + [pytest.approx(80 * 2 / 70), pytest.approx(2)]
