"""The report of a run with known samples."""

from dataclasses import replace

import pytest

from loadtest.load.report import LoadReport, WindowNumbers, markdown, window_numbers
from loadtest.load.samples import Sample
from loadtest.load.traffic.plans import Window
from loadtest.load.traffic.saturation import Saturation
from tests.support.load_samples import SLOS_MS, sample


def window(level: float, *samples: Sample) -> WindowNumbers:
    return window_numbers(Window(level, 0, 10), samples, SLOS_MS)


def answers(num: int, latency_s: float = 0.1) -> list[Sample]:
    return [sample(latency_s=latency_s) for _ in range(num)]


@pytest.fixture
def report() -> LoadReport:
    first = window(4, *answers(38), sample(latency_s=0.5), sample("compare", model="compared"))
    second = window(8, *answers(60), *(sample(status="overloaded") for _ in range(20)))
    return LoadReport({"command": "`locust`"}, "requests/s", True, [second, first])


def test_rates_and_shares_are_of_the_due_requests() -> None:
    late = sample(latency_s=0.5)
    refused = sample(status="overloaded")
    of = window(4, *answers(6), late, refused, sample(status="internal"), sample(status="not_sent"))
    assert of.num_right == 7
    assert of.verdicts == {"good": 6, "late": 1, "refused": 1, "error": 1, "not_sent": 1}
    assert of.share("refused") == 0.1


def test_percentiles_are_of_right_answers_only() -> None:
    of = window(
        4,
        *(sample(latency_s=0.01 * number) for number in range(1, 101)),
        sample(latency_s=9, status="internal"),
    )
    latency_ms = of.latency_ms
    assert (latency_ms.p50, latency_ms.p95, latency_ms.p99) == pytest.approx((500, 950, 990))


def test_requests_due_outside_a_window_do_not_count() -> None:
    assert window(4, sample(due_s=-0.1), sample(due_s=10.0), sample(due_s=5.0)).step.num_due == 1


def test_the_saturation_point_is_between_the_steps(report: LoadReport) -> None:
    assert report.saturation == Saturation(4, 8)
    assert (
        "\n4 requests/s hold: 90% or more of the due requests are answered within their SLO; 8 do"
        " not.\n" in markdown(report)
    )


def test_levels_are_sorted_with_their_shares(report: LoadReport) -> None:
    rows = [line for line in markdown(report).splitlines() if line.startswith(("| 4 |", "| 8 |"))]
    assert rows[0].startswith(
        "| 4 | 4.00 | 4.00 | 3.90 | 98 % | 2.5 % | 0.0 % | 0.0 % | 0.0 % | 100 | 100 | 500 |"
    )
    assert rows[1].startswith(
        "| 8 | 8.00 | 6.00 | 6.00 | 75 % | 0.0 % | 25 % | 0.0 % | 0.0 % | 100 | 100 | 100 |"
    )


def test_without_steps_the_windows_that_hold_are_counted(report: LoadReport) -> None:
    text = markdown(replace(report, is_stepped=False))
    assert "\n1 of 2 windows hold: 90% or more" in text


def test_a_window_without_streams_has_no_first_token(report: LoadReport) -> None:
    assert "| - / - |" in markdown(report)
