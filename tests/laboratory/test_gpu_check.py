"""The check of a GPU, on a CPU: what it measures of the device is not judged here, but all of it
runs.
"""

import json
from pathlib import Path

import pytest

from laboratory.gpu_check.report import Verdict, run, what_to_try, write
from tests.support.export_cli import ModelStore

CHECKS = [
    "devices",
    "features",
    "tokens, 1 beams",
    "tokens, 3 beams",
    "choices",
    "encoder",
    "prefill",
    "step",
    "throughput",
    "service",
]


@pytest.mark.long
def test_every_check_runs_and_the_cpu_equals_itself(exported: ModelStore) -> None:
    run = exported.forked(
        "-m", "laboratory.gpu_check", "--device", "cpu", "--seconds", "1", "florence-2-mini"
    )
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [line["check"] for line in lines] == CHECKS, run.stderr
    assert not [line for line in lines if "error" in line["measured"]]
    assert [line["is_met"] for line in lines[:5]] == [True] * 5
    assert run.returncode == (0 if all(line["is_met"] for line in lines) else 1)


def broken() -> Verdict:
    raise RuntimeError("CUDA error: unknown error")


def test_a_report_names_its_missed_aims_and_what_to_try(tmp_path: Path) -> None:
    measured = {"1 row, ms": 2.5, "kernel names": {"gemm": 9}}
    met = run(lambda: Verdict(measured, "<= 3", is_met=True), "step", "a")
    missed = run(broken, "tokens, 3 beams", "a")
    file = tmp_path / "report.json"
    write(file, [met, missed], ["no CUDA graph for the choice of 4 tokens"])
    report = json.loads(file.read_text())
    assert report["log"] == ["no CUDA graph for the choice of 4 tokens"]
    step, tokens = report["verdicts"]
    assert tokens["measured"]["error"] == "RuntimeError: CUDA error: unknown error"
    assert "RuntimeError" in tokens["measured"]["traceback"]
    assert step["measured"] == measured
    assert "gemm" not in met.line()
    assert what_to_try([met, missed]).startswith("tokens, 3 beams: few differences are rounding")
    assert what_to_try([met]) == "all 1 aims are met"
