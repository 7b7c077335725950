"""Plans: the level at each time, and the windows that are measured."""

import pytest

from loadtest.load.traffic.plans import Stepping, StepTimes, Window

TIMES = StepTimes(warm_up_s=10, settle_s=5, measured_s=20, tail_s=5)
START_S = 1000.0


def levels(plan: Stepping, seconds: int) -> list[float | None]:
    return [plan.level(START_S + second) for second in range(seconds)]


def test_a_step_lasts_until_its_tail_is_over_and_the_first_warms_up() -> None:
    calls: list[int] = []

    def next_level(windows: object) -> float | None:
        calls.append(len(list(windows)))  # type: ignore[call-overload]
        return (4.0, 8.0, None)[len(calls) - 1]

    plan = Stepping(next_level, TIMES, 600)
    assert levels(plan, 80) == [4.0] * 40 + [8.0] * 30 + [None] * 10
    assert calls == [0, 1, 2]
    first, second = plan.windows()
    assert (first, second) == (
        Window(4.0, START_S + 15, START_S + 35),
        Window(8.0, START_S + 45, START_S + 65),
    )


def test_no_step_starts_that_would_end_after_the_limit() -> None:
    plan = Stepping(lambda windows: float(len(windows) + 1), TIMES, 90)
    assert levels(plan, 130)[99:] == [3.0] + [None] * 30


@pytest.mark.parametrize(
    ("time_s", "is_inside"), [(9.9, False), (10, True), (19.9, True), (20, False)]
)
def test_a_window_includes_its_start_but_not_its_end(time_s: float, is_inside: bool) -> None:
    assert Window(1, 10, 20).contains(time_s) is is_inside
