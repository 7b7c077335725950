"""The supervisor over processes that wait: restarts, and the order in which it stops them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.export_cli import ROOT

Process = subprocess.Popen[str]


@contextmanager
def supervised(folder: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.support.supervised", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # and with it its processes


def lines_until(process: Process, event: str, num: int) -> list[str]:
    """Return the lines up to the `num`-th one with `event`."""
    assert process.stdout is not None
    lines: list[str] = []
    while sum(event in line for line in lines) < num:
        line = process.stdout.readline()
        assert line, lines
        lines.append(line)
    return lines


def pids(lines: list[str], name: str) -> list[int]:
    return [int(line.split()[2]) for line in lines if line.startswith(f"{name} starts")]


def test_a_process_that_fails_is_restarted_without_another_signal(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        lines = lines_until(process, "starts", 4)
    assert len(pids(lines, "gateway")) == 2
    assert len(set(pids(lines, "runner"))) == 2
    assert any("ended with status 3 and is restarted" in line for line in lines)


def test_runners_stop_after_the_gateways_have_drained_whatever_dies_meanwhile(
    tmp_path: Path,
) -> None:
    (tmp_path / "failed").touch()
    gauge = tmp_path / "metrics" / "gauge_livesum_gateway-0.db"
    with supervised(tmp_path) as process:
        first, _ = pids(lines_until(process, "starts", 3), "gateway")
        for abandoned in (gauge, tmp_path / f"gateway-{first}" / "body"):
            abandoned.parent.mkdir(exist_ok=True)
            abandoned.touch()
        os.kill(first, signal.SIGSTOP)  # it does not stop before it is killed
        process.send_signal(signal.SIGTERM)
        lines = lines_until(process, "draining", 1)
        process.send_signal(signal.SIGTERM)  # is ignored
        os.kill(first, signal.SIGKILL)
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
        assert process.wait(120) == 0
    events = [" ".join(line.split()[:2]) for line in lines if "stops" in line]
    assert events == ["gateway stops", "runner stops"]
    assert "stopped" in lines[-1]
    assert not gauge.exists()
    assert not list(tmp_path.glob(f"*-{first}/"))
