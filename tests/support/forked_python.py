"""Python programs in forks of one process that has imported the large packages, none of ours.

`fork(["-m", "service"], ...)` runs as `python -m service` does, without seconds of imports. Of
packages that read the environment when they are imported, the process has that of its start: a
program that needs another one is started as a process of its own.

`python -m tests.support.forked_python SOCKET` is that process. It receives requests, each a JSON
object with the descriptors of output and report, and ends with the last of its clients. For each it
forks a monitor, which forks the program, and reports its process id, and later its exit status.
"""

import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from service.process_options import process_environment

ROOT = Path(__file__).parents[2]
# All but prometheus_client, which chooses where its values are when it is imported.
LARGE_PACKAGES = (
    *("torch", "numpy", "safetensors.torch", "tokenizers", "onnxruntime", "onnx"),
    *("transformers", "peft", "torchvision", "scipy.optimize", "sympy"),
    *("aiohttp", "grpc", "grpc_health.v1.health", "httpx", "pydantic", "yaml", "PIL.Image"),
    *("uvicorn", "starlette.applications", "shapely", "opentelemetry.trace", "redis.asyncio"),
    *("bentoml", "_bentoml_sdk", "_bentoml_impl"),
)
_MAX_REQUEST_BYTES = 1 << 17
_STARTING = threading.Lock()


@dataclass(slots=True)
class ForkedProcess:
    """A forked program: a part of the interface of `subprocess.Popen`."""

    pid: int
    _report: socket.socket
    _status: int | None = field(default=None)

    def poll(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        return self._after(0)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when the program has ended; raise after `timeout` seconds."""
        status = self._after(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        """Send a signal unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _after(self, timeout_s: float | None) -> int | None:
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
    request = json.dumps({"arguments": list(arguments), "environment": dict(environment)})
    with _STARTING:
        server = _server()
    report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(server.requests, [request.encode()], [stdout, stderr, theirs.fileno()])
    return ForkedProcess(int(report.recv(64)), report)


def run(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` to its end."""
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = fork(arguments, environment, stdout.fileno(), stderr.fileno())
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


@dataclass(frozen=True, slots=True)
class _Server:
    requests: socket.socket
    process: subprocess.Popen[bytes]


@cache
def _server() -> _Server:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.support.forked_python", str(theirs.fileno())]
        environment = process_environment(os.environ)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], start_new_session=True
        )
    return _Server(ours, process)


def _next_program(requests: socket.socket) -> Any:
    """Answer requests until the clients have ended; return a request in its forked program."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 3)
        if not message:
            sys.exit()
        *outputs, report = descriptors
        if not os.fork():
            requests.close()
            if _is_program(report):
                return {**json.loads(message), "outputs": outputs}
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
        _reap()


def _reap() -> None:
    """Remove the monitors that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _is_program(report: int) -> bool:
    """Fork the program and return True in it; report of it in its parent, and return False."""
    pid = os.fork()
    if not pid:
        os.close(report)
        return True
    os.write(report, str(pid).encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(report, str(status).encode())
    return False


def _run(arguments: Sequence[str], environment: Mapping[str, str], outputs: Sequence[int]) -> None:
    """Become `python ARGUMENTS`."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, standard in zip(outputs, (1, 2), strict=True):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    option, program, *rest = arguments
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(program, {"__name__": "__main__"})


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        for _package in LARGE_PACKAGES:
            importlib.import_module(_package)
        _program = _next_program(_requests)
    _run(**_program)
