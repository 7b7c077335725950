"""Verdicts by SLO, and the reports of workers to their master."""

import time
from typing import get_args

import pytest

from loadtest.load.samples import DEFECTS, Recorder, Verdict
from loadtest.load.traffic.plans import Window
from loadtest.load.traffic.saturation import Step
from service.errors import ErrorCode
from tests.support.load_samples import SLOS_MS, sample


@pytest.mark.parametrize(
    ("latency_s", "first_token_s", "status", "verdict"),
    [
        (0.400, None, "ok", "good"),
        (0.401, None, "ok", "late"),
        (0.400, 0.300, "ok", "good"),
        (0.400, 0.301, "ok", "late"),
        (0.001, None, "overloaded", "refused"),
        (9.0, None, "overloaded", "refused"),
        (0.0, None, "not_sent", "not_sent"),
        (0.001, None, "wrong_answer", "error"),
        (0.001, None, "internal", "error"),
        (0.001, None, "deadline_exceeded", "error"),
        (0.001, None, "connection_failed", "error"),
        (0.001, None, "status_502", "error"),
        (0.001, None, "invalid_request", "error"),
    ],
)
def test_a_verdict_depends_on_status_then_on_slo(
    latency_s: float, first_token_s: float | None, status: str, verdict: Verdict
) -> None:
    one = sample(latency_s=latency_s, first_token_s=first_token_s, status=status)
    assert one.verdict(SLOS_MS) == verdict


def test_every_code_of_the_service_but_overloaded_is_an_error() -> None:
    verdicts = {code: sample(status=code).verdict(SLOS_MS) for code in get_args(ErrorCode)}
    assert verdicts == {
        code: "refused" if code == "overloaded" else "error" for code in get_args(ErrorCode)
    }
    assert "internal" in DEFECTS


def test_a_step_counts_the_requests_due_in_it_answered_or_not() -> None:
    recorder = Recorder([9.0, 10.0, 11.0, 12.0, 20.0])
    recorder.samples += [
        sample(due_s=9.0),
        sample(due_s=10.0),
        sample(due_s=11.0, status="overloaded"),
    ]
    assert recorder.step(Window(7, 10, 20), SLOS_MS) == Step(7, 3, 1)
    assert recorder.num_in_flight == 2


def test_times_of_a_report_are_converted_to_the_masters_clock() -> None:
    worker = Recorder([100.0, 101.0], [sample(due_s=100.0)])
    master = Recorder()
    report = worker.take_report()
    report["now_s"] -= 3600  # a worker whose clock is an hour behind
    master.add_report(report)
    assert master.due_s == pytest.approx([3700, 3701], abs=60)
    assert master.samples[0].due_s == pytest.approx(3700, abs=60)
    assert report["now_s"] == pytest.approx(time.time() - 3600, abs=60)


def test_samples_are_reported_once() -> None:
    worker = Recorder([1.0], [sample()])
    master = Recorder()
    master.add_report(worker.take_report())
    master.add_report(worker.take_report())
    assert (len(master.due_s), len(master.samples)) == (1, 1)
