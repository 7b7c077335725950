"""The socket of a runner, signals to a process."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.supervision.worker_process import Part, WorkerProcess, runner_part


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
    process = WorkerProcess(part, 0, [])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process.pid = child.pid
        process.stop(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
        process.stop(signal.SIGKILL)  # it has ended
    process.note_end(signal.SIGTERM)
    process.start_if_due()
    assert process.pid is None
