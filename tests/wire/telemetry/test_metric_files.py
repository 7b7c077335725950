"""Files of metrics, by processes of this test's own: what a process declares and writes is that
process's for good.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain, product
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.export_cli import ROOT
from wire.telemetry.metric_files import remove_live_gauges

WRITE = """
import sys
from wire.telemetry.metric_files import use_metric_files, write_metrics_as
use_metric_files()
from prometheus_client import Counter, Gauge
calls = Counter("calls", "Calls.", ["kind"])
live = Gauge("live", "Live calls.", multiprocess_mode="livesum")
write_metrics_as(sys.argv[1])
"""
COUNT_TWO = WRITE + "calls.labels('a').inc(2); live.set(3)"
WITHOUT_FOLDER = """
import shutil, os
shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])  # no space can be reserved any more
"""
COUNT_MANY = """
for kind in range(2000):
    calls.labels(f"kind {kind}").inc()
calls.clear()  # the values are read again, from where they are kept
for kind in range(2000):
    calls.labels(f"kind {kind}").inc()
assert {calls.labels(f"kind {kind}")._value.get() for kind in range(2000)} == {2.0}
"""
READ = """
from wire.telemetry.metric_files import _text
print(_text().decode())
"""


def run(folder: Path, program: str, *arguments: str) -> str:
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", program, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def values(folder: Path) -> dict[str, float]:
    families = text_string_to_metric_families(run(folder, READ))
    samples = chain.from_iterable(family.samples for family in families)
    return {sample.name: sample.value for sample in samples}


def test_counters_of_a_restarted_part(tmp_path: Path) -> None:
    for _ in range(3):
        run(tmp_path, COUNT_TWO, "runner")
    run(tmp_path, COUNT_TWO, "diptych-0")
    assert values(tmp_path)["calls_total"] == 8
    names = {path.name for path in tmp_path.iterdir() if "supervisor" not in path.name}
    kinds = ("counter", "gauge_livesum")
    assert names == {f"{kind}_{part}.db" for kind, part in product(kinds, ("runner", "diptych-0"))}


def test_live_gauges_of_an_ended_part(tmp_path: Path) -> None:
    for part in ("diptych-0", "diptych-1"):
        run(tmp_path, COUNT_TWO, part)
    remove_live_gauges(tmp_path, "diptych-0")
    assert values(tmp_path) == {"calls_total": 4, "live": 3}


@pytest.mark.parametrize(
    "steps",
    [[WITHOUT_FOLDER, WRITE, COUNT_MANY], [COUNT_TWO, WITHOUT_FOLDER, COUNT_MANY]],
    ids=["from the start", "when a file grows"],
)
def test_counters_without_space(tmp_path: Path, steps: Sequence[str]) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    assert "no space for metrics of runner" in run(folder, "".join(steps), "runner")


def test_space_is_reserved(tmp_path: Path) -> None:
    run(tmp_path, WRITE + COUNT_MANY, "runner")
    status = (tmp_path / "counter_runner.db").stat()
    assert status.st_blocks * 512 >= status.st_size > 65536
    assert run(tmp_path, READ).count("calls_total{") == 2000
