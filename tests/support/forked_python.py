"""Python programs in forks of one process that has imported the large packages.

`fork(["-m", "export"], ...)` runs as `python -m export` does, without seconds of imports. Of
packages that read the environment when they are imported, that process has the environment of its
start: `subprocess` starts a program that needs another one.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from unittest import mock

from wire.host import process_environment

ROOT = Path(__file__).parents[2]
# All but prometheus_client, which chooses where its values are when it is imported, and ours.
_LARGE_PACKAGES = [
    *("torch", "numpy", "safetensors.torch", "tokenizers", "onnxruntime", "onnx"),
    *("transformers", "peft", "torchvision", "scipy.optimize", "sympy"),
    *("aiohttp", "grpc", "grpc_health.v1.health", "httpx", "pydantic", "yaml", "PIL.Image"),
    *("uvicorn", "starlette.applications", "shapely", "opentelemetry.trace"),
    *("bentoml", "_bentoml_sdk", "_bentoml_impl", "pytest"),
]


class ForkedProcess:
    """A forked program: a part of the interface of `subprocess.Popen`."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(
    arguments: Sequence[str], environment: Mapping[str, str], stdout: Path, stderr: Path
) -> ForkedProcess:
    values = (list(arguments), process_environment(environment), str(stdout), str(stderr))
    process = _context().Process(target=_run, args=values)
    process.start()
    return ForkedProcess(process)


def run(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = fork(arguments, environment, stdout, stderr)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(
            arguments, status, stdout.read_text("utf-8"), stderr.read_text("utf-8")
        )


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LARGE_PACKAGES)
    with mock.patch.dict(os.environ, process_environment(os.environ)):
        ensure_running()
    return context


def _run(arguments: list[str], environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Make this process one that has just been started, and run the program in it."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # chosen by the environment at the first use
    for descriptor, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    option, program, *rest = arguments
    sys.argv = [option, *rest]
    try:
        if option == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
