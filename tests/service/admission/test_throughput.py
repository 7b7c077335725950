import pytest

from service.admission.fair_queue import ThroughputEstimate


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_without_measurements_the_estimate_is_zero() -> None:
    assert ThroughputEstimate(Clock()).seconds_for(1000) == 0


def test_concurrent_work_adds_up() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for _ in range(4):
        throughput.begin()
    clock.now_s += 2
    for _ in range(4):
        throughput.end(10)
    assert throughput.seconds_for(20) == pytest.approx(1)


def test_idle_time_does_not_count() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for _ in range(2):
        throughput.begin()
        clock.now_s += 1
        throughput.end(10)
        clock.now_s += 1000
    assert throughput.seconds_for(10) == pytest.approx(1)


def test_recent_work_has_the_highest_weight() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for work_s in [1.0] * 100 + [0.1] * 400:
        throughput.begin()
        clock.now_s += work_s
        throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(0.1, rel=0.2)


def test_failed_work_counts_as_busy_time() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    throughput.begin()
    throughput.begin()
    clock.now_s += 1
    throughput.end(0)
    throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(1)


def test_first_to_finish_of_a_burst_is_no_estimate() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    for _ in range(8):
        throughput.begin()
    clock.now_s += 2
    seconds = []
    for _ in range(8):
        throughput.end(10)
        throughput.begin()
        seconds.append(throughput.seconds_for(80))
    assert seconds == [0] * 6 + [pytest.approx(80 * 2 / 70), pytest.approx(2)]


def test_a_slow_past_is_forgotten_after_a_quiet_time() -> None:
    clock = Clock()
    throughput = ThroughputEstimate(clock)
    throughput.begin()
    clock.now_s += 60
    throughput.end(10)
    assert throughput.seconds_for(10) == pytest.approx(60)
    clock.now_s += 11
    throughput.begin()
    assert throughput.seconds_for(10) == 0
