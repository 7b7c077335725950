"""The report of a run with known samples."""

from dataclasses import replace

import pytest

from loadtest.load.report import LoadReport, markdown
from loadtest.load.samples import Sample
from loadtest.load.traffic.plans import Window
from loadtest.load.traffic.saturation import Saturation
from loadtest.load.windows import WindowNumbers, window_numbers
from tests.support.load_samples import SLOS_MS, sample


def window(level: float, *samples: Sample) -> WindowNumbers:
    return window_numbers(Window(level, 0, 10), samples, SLOS_MS)


def answers(num: int, latency_s: float = 0.1) -> list[Sample]:
    return [sample(latency_s=latency_s) for _ in range(num)]


@pytest.fixture
def report() -> LoadReport:
    first = window(4, *answers(38), sample(latency_s=0.5), sample("compare", model="compared"))
    second = window(8, *answers(60), *(sample(status="overloaded") for _ in range(20)))
    return LoadReport({"command": "`locust`"}, "requests/s", SLOS_MS, [second, first])


def test_rates_and_shares_are_of_the_due_requests() -> None:
    late = sample(latency_s=0.5)
    refused = sample(status="overloaded")
    of = window(4, *answers(6), late, refused, sample(status="internal"), sample(status="not_sent"))
    assert (of.offered_per_s, of.answered_per_s, of.goodput_per_s) == (1.0, 0.7, 0.6)
    assert of.all.verdicts == {"good": 6, "late": 1, "refused": 1, "error": 1, "not_sent": 1}
    assert of.all.share("refused") == 0.1


def test_percentiles_are_of_right_answers_only() -> None:
    of = window(
        4,
        *(sample(latency_s=0.01 * number) for number in range(1, 101)),
        sample(latency_s=9, status="internal"),
    )
    assert of.all.latency_ms is not None
    assert (of.all.latency_ms.p50, of.all.latency_ms.p95, of.all.latency_ms.p99) == pytest.approx(
        (500, 950, 990)
    )


def test_requests_due_outside_a_window_do_not_count() -> None:
    assert window(4, sample(due_s=-0.1), sample(due_s=10.0), sample(due_s=5.0)).all.num_due == 1


def test_samples_are_grouped_by_model_and_task() -> None:
    of = window(4, sample(), sample(task="captioning", status="internal"), sample(model="other"))
    assert {model: list(tasks) for model, tasks in of.by_model.items()} == {
        "florence-2-mini": ["captioning", "ocr"],
        "other": ["ocr"],
    }
    assert of.by_model["florence-2-mini"]["captioning"].share("error") == 1


def test_the_saturation_point_is_between_the_steps(report: LoadReport) -> None:
    assert report.saturation == Saturation(4, 8)
    assert report.held is report.windows[1]
    assert (
        "\n4 requests/s hold: 90% or more of the due requests are answered within their SLO; 8 do"
        " not.\n" in markdown(report)
    )


def test_of_several_tries_of_a_level_the_one_that_held_is_shown(report: LoadReport) -> None:
    failed = window(4, *answers(5), *(sample(status="overloaded") for _ in range(5)))
    again = replace(report, windows=[failed, *report.windows])
    assert again.held is report.windows[1]


def test_levels_are_sorted_with_their_shares(report: LoadReport) -> None:
    rows = [line for line in markdown(report).splitlines() if line.startswith(("| 4 |", "| 8 |"))]
    assert rows[0].startswith(
        "| 4 | 4.00 | 4.00 | 3.90 | 98 % | 2.5 % | 0.0 % | 0.0 % | 0.0 % | 100 | 100 | 500 |"
    )
    assert rows[1].startswith(
        "| 8 | 8.00 | 6.00 | 6.00 | 75 % | 0.0 % | 25 % | 0.0 % | 0.0 % | 100 | 100 | 100 |"
    )


def test_tasks_are_shown_at_the_highest_level_that_holds(report: LoadReport) -> None:
    text = markdown(report)
    assert "At 4 requests/s." in text
    assert "| ocr | 400 / 300 | 100 / 100, 1 of 1 | 100 / 100, 38 of 39 |" in text
    assert "| captioning | 600 / 300 |  |  |" in text
