"""One process of the service: BentoML's worker for a part, on a socket that outlives it.

It is forked from the supervisor, which has imported all modules: it starts in milliseconds and
shares their memory. Arguments and environment are those of a worker of `bentoml serve` (BentoML
1.4.40, _bentoml_impl/server/serving.py).
"""

import asyncio
import ctypes
import logging
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runners.bentoml_internals import run_worker
from runners.bentoml_internals import worker_environment as bentoml_environment
from wire.telemetry.metric_files import FOLDER_VARIABLE, write_metrics_as

logger = logging.getLogger(__name__)

METRICS_FOLDER = "metrics"
_SHORT_LIFE_S = 5.0  # a process that ends sooner is restarted after a pause
_PAUSE_S = 1.0
BACKLOG = 2048
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# arg_start and arg_end in /proc/PID/stat, after the name (man proc_pid_stat)
_ARGUMENTS = slice(45, 47)


@dataclass(frozen=True, slots=True)
class Part:
    """A BentoML service by its name, with its listening socket and its URL."""

    name: str
    listener: socket.socket
    url: str
    options: tuple[str, ...] = ()  # arguments of BentoML's worker
    protocol: type[asyncio.Protocol] | None = None  # HTTP connections; default: uvicorn's


def runner_part(name: str, folder: Path) -> Part:
    """Return a runner behind the gateway, listening on a socket in `folder`."""
    listener = socket.socket(socket.AF_UNIX)
    path = folder / f"{name}.sock"
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return Part(name, listener, path.as_uri())


def worker_environment(parts: Sequence[Part], folder: Path) -> dict[str, str]:
    """Return the variables that all processes add; they write into `folder`."""
    metrics = folder / METRICS_FOLDER
    metrics.mkdir()
    return {
        **bentoml_environment({part.name: part.url for part in parts}),
        FOLDER_VARIABLE: str(metrics),
        "TMPDIR": str(folder),
    }


class WorkerProcess:
    """The process of a part: started, restarted when it ends, stopped."""

    def __init__(
        self,
        part: Part,
        name: str,
        others: Sequence[Part],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.part = part
        # unlike the part's, no other process has it: several gateways are one part
        self.name = name
        self.pid: int | None = None  # set while it runs
        self._others = others
        self._now = now
        self._started_s = 0.0
        self._next_start_s = -math.inf
        self._is_wanted = True

    def start_if_due(self) -> None:
        """Start the process unless it runs, was stopped, or pauses after a short life."""
        if self.pid is not None or not self._is_wanted or self._now() < self._next_start_s:
            return
        self._started_s = self._now()
        self.pid = os.fork()
        if self.pid == 0:
            _become(self.part, self.name, self._others)

    def note_end(self, status: int) -> None:
        """Record the end of the process with its status of os.waitpid()."""
        code = os.waitstatus_to_exitcode(status)
        if self._is_wanted:
            logger.error(
                "%s (process %d) ended with status %d and is restarted",
                self.part.name,
                self.pid,
                code,
            )
        is_short = self._now() - self._started_s < _SHORT_LIFE_S
        self._next_start_s = self._now() + _PAUSE_S if is_short else -math.inf
        self.pid = None

    def stop(self, signum: signal.Signals) -> None:
        """Send `signum` to the process, and do not restart it."""
        self._is_wanted = False
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def _show_as(title: str) -> None:
    """Overwrite the command line that `ps` shows, cut to the length it had."""
    with (
        suppress(OSError, ValueError),  # QEMU's stat lacks the two fields
        open("/proc/self/stat", encoding="utf-8") as stat,
        open("/proc/self/mem", "r+b") as memory,
    ):
        start, end = map(int, stat.read().rpartition(")")[2].split()[_ARGUMENTS])
        memory.seek(start)
        memory.write(title.encode()[: end - start - 1].ljust(end - start, b"\0"))


def _become(part: Part, name: str, others: Sequence[Part]) -> NoReturn:
    """Run BentoML's worker in a new process, killed if the supervisor dies."""
    status = 1
    try:
        if sys.platform == "linux":
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # a terminal's Ctrl-C goes to the supervisor only
        for other in others:
            other.listener.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # removed by the supervisor, however this process ends; without space there is no folder, as
        # nothing that a request needs is written there
        with suppress(OSError):
            os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(
                f"-{os.getpid()}", f"{part.name}-"
            )
        write_metrics_as(name)
        _show_as(f"diptych --service-name {part.name}")
        run_worker(
            "service.gateway:Gateway",
            part.name,
            part.listener.fileno(),
            part.options,
            part.protocol,
        )
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        logger.exception("%s failed", part.name)
    finally:
        os._exit(status)  # skips the cleanup of the supervisor, whose stack was forked
