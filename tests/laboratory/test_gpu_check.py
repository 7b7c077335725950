"""The check of a GPU, on a CPU: what it measures of the device is not judged here, but all of it
runs.
"""

import json
import time
from pathlib import Path

import pytest
import torch

from laboratory.gpu_check.parts import endless
from laboratory.gpu_check.report import Verdict, run, what_to_try, write
from laboratory.gpu_check.speed import MarkedEngine
from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.export_cli import ModelStore
from tests.support.passes import capture_eagerly
from wire.artifacts.manifest import read_manifest

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


class HostMark:
    """The mark of a CPU, which finishes all work when it is launched."""

    def __init__(self) -> None:
        self._time_s = 0.0

    def record(self) -> None:
        self._time_s = time.perf_counter()

    def elapsed_time(self, end: "HostMark") -> float:
        return 1000 * (end._time_s - self._time_s)


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


def test_the_idle_share_is_the_time_between_passes_and_choices(artifacts: Path) -> None:
    decoder = endless(
        load_decoder(artifacts, read_manifest(artifacts).family, "float32", "cpu", 64)
    )
    engine = MarkedEngine(decoder, 2, HostMark, capture_eagerly)
    features = torch.zeros(16, read_manifest(artifacts).hidden_size)
    request = SequenceRequest(features, decoder.text.prompt_ids([("abc", False)]), 20)
    batch = LiveBatch(decoder, 2, lambda *_: engine)
    batch.admit([start_sequence(request, decoder.rules) for _ in range(2)])
    for _ in range(3):
        batch.step()
        time.sleep(0.02)
    names = [name for name, _ in engine.events]
    assert names == [*["pass", "choice"] * 3, "pass"]
    idle_ms, all_ms = engine.times_ms()
    assert 2 * 20 < idle_ms < all_ms
