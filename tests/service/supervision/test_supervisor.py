"""The supervisor over processes that wait: restarts, and the order in which it stops them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.supervision.supervisor import Part, WorkerProcess, run_folder, runner_part
from tests.support.export_cli import ROOT

Process = subprocess.Popen[str]


@contextmanager
def supervised(folder: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.service.supervision.supervised", str(folder)]
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


def test_failed_process_is_restarted(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        lines = lines_until(process, "starts", 3)
        failed_s = time.monotonic()
        lines += lines_until(process, "starts", 1)
        pause_s = time.monotonic() - failed_s
    assert pause_s > 0.5  # after a short life
    assert len(pids(lines, "gateway")) == 2
    assert len(set(pids(lines, "runner"))) == 2
    assert any("ended with status 3 and is restarted" in line for line in lines)


def test_runners_stop_last(tmp_path: Path) -> None:
    (tmp_path / "failed").touch()
    gauge = tmp_path / "metrics" / "gauge_livesum_gateway-0.db"
    with supervised(tmp_path) as process:
        first, _ = pids(lines_until(process, "starts", 3), "gateway")
        for abandoned in (gauge, tmp_path / f"gateway-{first}" / "body"):
            abandoned.parent.mkdir(exist_ok=True)
            abandoned.touch()
        os.kill(first, signal.SIGSTOP)  # it does not stop before it is killed
        process.send_signal(signal.SIGINT)
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


HOLDER = """
import sys
from service.supervision.supervisor import run_folder
with run_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder() -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def folder_of(process: "subprocess.Popen[str]") -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_run_folder_is_private() -> None:
    with run_folder() as folder:
        (folder / "file").write_text("x")
        assert folder.parent == Path("/dev/shm")
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_abandoned_folders_are_removed() -> None:
    with holder() as killed, holder() as living:
        left = folder_of(killed)
        in_use = folder_of(living)
        (left / "file").write_text("x")
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(30)
        assert left.exists()
        with run_folder():
            assert not left.exists()
            assert in_use.exists()
        living.communicate("", timeout=30)
    assert not in_use.exists()


@pytest.fixture
def part(tmp_path: Path) -> Iterator[Part]:
    part = runner_part("a-runner", tmp_path)
    yield part
    part.listener.close()


def test_stopped_process_stays_stopped(part: Part) -> None:
    process = WorkerProcess(part, 0, [])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process.pid = child.pid
        process.stop(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
        process.stop(signal.SIGKILL)  # it has ended
    process.note_end(signal.SIGTERM)
    process.start_if_due()
    assert process.pid is None
