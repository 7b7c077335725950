"""The socket of a runner, signals to a process, its name in `ps`."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.supervision.worker_process import Part, WorkerProcess, runner_part
from tests.support.export_cli import ROOT


@pytest.fixture
def part(tmp_path: Path) -> Iterator[Part]:
    part = runner_part("a-runner", tmp_path)
    yield part
    part.listener.close()


def test_connections_to_a_runner_wait_in_its_socket_until_it_accepts(part: Part) -> None:
    path = part.url.removeprefix("file://")
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for client in (first, second):
            client.connect(path)
            client.sendall(b"x")
        accepted, _ = part.listener.accept()
        with accepted:
            assert accepted.recv(1) == b"x"


def test_a_stopped_process_gets_the_signal_and_is_not_started_again(part: Part) -> None:
    process = WorkerProcess(part, "a", [])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process.pid = child.pid
        process.stop(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
        process.stop(signal.SIGKILL)  # it has ended
    process.note_end(signal.SIGTERM)
    process.start_if_due()
    assert process.pid is None


# Runs in another process: pytest-xdist shows its own name for a worker's.
SHOWN = """
from pathlib import Path
from service.supervision.worker_process import _show_as

command_line = Path("/proc/self/cmdline")
before = command_line.read_bytes()
_show_as("x" * 2 * len(before))
assert command_line.read_bytes() == b"x" * (len(before) - 1) + b"\\0"
_show_as("diptych")
assert command_line.read_bytes().rstrip(b"\\0") == b"diptych"
"""


def test_the_name_in_ps_is_cut_to_the_length_of_the_command_line() -> None:
    subprocess.run([sys.executable, "-c", SHOWN], cwd=ROOT, check=True)
