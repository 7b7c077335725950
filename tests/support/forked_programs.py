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
from collections.abc import Sequence
from contextlib import suppress

# All but prometheus_client, which chooses where its values are when it is imported.
LARGE_PACKAGES = (
    *("torch", "numpy", "safetensors.torch", "tokenizers", "onnxruntime", "onnx"),
    *("transformers", "peft", "torchvision", "scipy.optimize", "sympy"),
    *("aiohttp", "grpc", "grpc_health.v1.health", "httpx", "pydantic", "yaml", "PIL.Image"),
    *("uvicorn", "starlette.applications", "shapely", "opentelemetry.trace", "redis.asyncio"),
    *("bentoml", "_bentoml_sdk", "_bentoml_impl"),
)
_MAX_REQUEST_BYTES = 1 << 17


def _next_program(requests: socket.socket) -> Sequence[str]:
    """Answer requests until the clients have ended; return the arguments of one in its forked
    program.
    """
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 3)
        if not message:
            sys.exit()
        stdout, stderr, report = descriptors
        if not os.fork():
            requests.close()
            _fork_program(report)
            return _prepared(**json.loads(message), stdout=stdout, stderr=stderr)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(ChildProcessError):  # remove the monitors that have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _fork_program(report: int) -> None:
    """Fork the program and return in it; report of it in its parent, which ends with it."""
    pid = os.fork()
    if not pid:
        os.close(report)
        return
    os.write(report, str(pid).encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(report, str(status).encode())
    os._exit(0)


def _prepared(
    arguments: Sequence[str], environment: dict[str, str], stdout: int, stderr: int
) -> Sequence[str]:
    """Make this process one that has just been started; return the arguments."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # chosen by the environment at the first use
    for descriptor, standard in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    return arguments


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _requests:
        for _package in LARGE_PACKAGES:
            importlib.import_module(_package)
        _option, _program, *_rest = _next_program(_requests)
    sys.argv = [_option, *_rest]
    if _option == "-m":
        runpy.run_module(_program, run_name="__main__", alter_sys=True)
    else:
        exec(_program, {"__name__": "__main__"})
