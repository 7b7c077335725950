"""`python -m tests.support.forked_programs SOCKET`: a process that has imported the large packages,
none of ours, and becomes the programs that it receives.

A request is a JSON object {arguments, environment} with three descriptors: stdout, stderr and a
report. For each a monitor is forked, which forks the program, and reports its process id, and later
its exit status. The process ends with the last of its clients (tests/support/forked_python.py).
"""

import importlib
import json
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# All but prometheus_client, which chooses where its values are when it is imported.
LARGE_PACKAGES = (
    *("torch", "numpy", "safetensors.torch", "tokenizers", "onnxruntime", "onnx"),
    *("transformers", "peft", "torchvision", "scipy.optimize", "sympy"),
    *("aiohttp", "grpc", "grpc_health.v1.health", "httpx", "pydantic", "yaml", "PIL.Image"),
    *("uvicorn", "starlette.applications", "shapely", "opentelemetry.trace", "redis.asyncio"),
    *("bentoml", "_bentoml_sdk", "_bentoml_impl"),
)
_MAX_REQUEST_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class _Program:
    """A request, in the process that is forked for it; `outputs` are stdout and stderr."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    outputs: Sequence[int]

    def run(self) -> None:
        """Become `python ARGUMENTS`."""
        os.setsid()
        os.environ.clear()
        os.environ.update(self.environment)
        tempfile.tempdir = None  # chosen by the environment at the first use
        for descriptor, standard in zip(self.outputs, (1, 2), strict=True):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        option, program, *rest = self.arguments
        sys.argv = [option, *rest]
        if option == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})


def _next_program(requests: socket.socket) -> _Program:
    """Answer requests until the clients have ended; return a request in its forked program."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 3)
        if not message:
            sys.exit()
        *outputs, report = descriptors
        if not os.fork():
            requests.close()
            if _is_program(report):
                return _Program(**json.loads(message), outputs=outputs)
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


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        for _package in LARGE_PACKAGES:
            importlib.import_module(_package)
        _program = _next_program(_requests)
    _program.run()
