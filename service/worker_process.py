"""One process of the service: BentoML's worker for a part, on a socket that outlives it.

Command and environment are what `bentoml serve` gives its own (BentoML 1.4.40, _bentoml_impl/server/serving.py). It
imports nothing of BentoML.
"""

import ctypes
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_SHORT_LIFE_S = 5.0  # what ends sooner is started anew after a pause, not at once
_PAUSE_S = 1.0
_BACKLOG = 2048
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Part:
    """A service of BentoML by its name, and where it is reached."""

    name: str
    listener: socket.socket
    url: str


def gateway_part(host: str, port: int) -> Part:
    """Return the gateway, listening; raise `OSError` where the address is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    return Part("diptych", listener, f"http://{host}:{port}")


def runner_parts(models: Sequence[str], folder: Path) -> list[Part]:
    """Return encoder and decoder of each model, listening on sockets in `folder`."""
    return [_runner_part(f"{model}-{part}", folder) for model in models for part in ("encoder", "decoder")]


def _runner_part(name: str, folder: Path) -> Part:
    listener, path = socket.socket(socket.AF_UNIX), folder / f"{name}.sock"
    listener.bind(str(path))
    listener.listen(_BACKLOG)
    return Part(name, listener, path.as_uri())


def worker_environment(parts: Sequence[Part], folder: Path) -> dict[str, str]:
    """Return the environment of all processes; what they write goes into `folder`."""
    metrics = folder / "metrics"
    metrics.mkdir()
    return {
        **os.environ,
        "BENTOML_RUNNER_MAP": json.dumps({part.name: part.url for part in parts}),
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        "TMPDIR": str(folder),
    }


class WorkerProcess:
    """The process of a part: started, started anew when it has ended, stopped."""

    def __init__(self, part: Part, environment: Mapping[str, str], now: Callable[[], float] = time.monotonic) -> None:
        self.part = part
        self._environment = environment
        self._now = now
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._next_start_s = -math.inf
        self._is_wanted = True

    @property
    def pid(self) -> int | None:
        """The id of the process, None where there is none."""
        return None if self._process is None else self._process.pid

    def start_if_due(self) -> None:
        """Start the process unless it runs, was stopped, or has just ended after a short life."""
        if self._process is not None or not self._is_wanted or self._now() < self._next_start_s:
            return
        fd = str(self.part.listener.fileno())
        worker = [sys.executable, "-m", "_bentoml_impl.worker.service", "service.gateway:Gateway"]
        self._process = subprocess.Popen(
            [*worker, "--service-name", self.part.name, "--fd", fd, "--worker-id", "1"],
            env=self._environment,
            pass_fds=[int(fd)],
            start_new_session=True,  # a terminal's Ctrl-C is the supervisor's
            preexec_fn=_leave_with_parent,
        )
        self._started_s = self._now()

    def note_end(self, status: int) -> None:
        """Note that the process has ended, with a status of os.waitpid()."""
        assert self._process is not None
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._is_wanted:
            logger.error("%s (process %d) ended with status %d: it is started anew", self.part.name, self.pid, code)
        is_short = self._now() - self._started_s < _SHORT_LIFE_S
        self._next_start_s = self._now() + _PAUSE_S if is_short else -math.inf
        self._process = None

    def stop(self, signum: signal.Signals) -> None:
        """Send `signum` to the process; it is not started anew."""
        self._is_wanted = False
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def _leave_with_parent() -> None:
    """In a new process: let it die with the supervisor, however that ends, and hear signals again."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
