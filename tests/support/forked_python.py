"""Python programs in forks of one process that has imported the large packages.

`fork(["-m", "export"], ...)` runs as `python -m export` does, without seconds of imports. Of
packages that read the environment when they are imported, that process has the environment of its
start: `subprocess` starts a program that needs another one.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

from wire.host import process_environment

ROOT = Path(__file__).parents[2]
_STARTING = threading.Lock()


class ForkedProcess:
    """A forked program: a part of the interface of `subprocess.Popen`."""

    def __init__(self, report: socket.socket) -> None:
        self.pid = int(report.recv(64))
        self._report = report
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        return self._status_after(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when the program has ended; raise after `timeout` seconds."""
        status = self._status_after(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        """Send a signal unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _status_after(self, timeout_s: float | None) -> int | None:
        if self._status is None:
            reports = select.poll()  # select() takes no descriptor above 1,023
            reports.register(self._report, select.POLLIN)
            if reports.poll(None if timeout_s is None else 1000 * timeout_s):
                self._status = int(self._report.recv(64))
                self._report.close()
        return self._status


def fork(
    arguments: Sequence[str], environment: Mapping[str, str], stdout: int, stderr: int
) -> ForkedProcess:
    """Start `python ARGUMENTS` in the root of the repository."""
    program = {"arguments": list(arguments), "environment": process_environment(environment)}
    with _STARTING:
        requests, _ = _server()
    report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        descriptors = [stdout, stderr, theirs.fileno()]
        socket.send_fds(requests, [json.dumps(program).encode()], descriptors)
    return ForkedProcess(report)


def run(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = fork(arguments, environment, stdout.fileno(), stderr.fileno())
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


@cache
def _server() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.support.forked_programs", str(theirs.fileno())]
        environment = process_environment(os.environ)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
        )
    return ours, process
