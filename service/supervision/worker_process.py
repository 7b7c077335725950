"""One process of the service: BentoML's worker for a part, on a socket that outlives it.

It is forked from the supervisor, which has imported all modules: it starts in milliseconds and
shares their memory. The portable way (wire/host.py) starts a program instead, as macOS's libraries
do not survive a fork. Arguments and environment are those of a worker of `bentoml serve` (BentoML
1.4.40, _bentoml_impl/server/serving.py).
"""

import logging
import math
import mmap
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

from runners.bentoml_internals import keep_loggers, run_worker
from runners.bentoml_internals import worker_environment as bentoml_environment
from service.settings import SettingsError, settings
from service.supervision.roles import GATEWAY, Role
from service.telemetry.logs import JsonLines, configure_logging
from tasks.catalog import CatalogError
from wire.artifacts.manifest import ArtifactError
from wire.host import end_with, is_portable, show_as
from wire.telemetry.metric_files import FOLDER_VARIABLE, use_metric_files, write_metrics_as

logger = logging.getLogger(__name__)

METRICS_FOLDER = "metrics"
REFUSALS = (SettingsError, CatalogError, ArtifactError)  # each names what to fix
_SHORT_LIFE_S = 5.0  # a process that ends sooner is restarted after a pause
_PAUSE_S = 1.0
BACKLOG = 2048
# one number for each gateway; the supervisor's forks share them
_NUM_CONNECTIONS = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")


@dataclass(frozen=True, slots=True)
class Part:
    """A BentoML service by its name, with its listening socket and its URL."""

    name: str
    listener: socket.socket
    url: str
    options: tuple[str, ...] = ()  # arguments of BentoML's worker


def runner_part(name: str, folder: Path) -> Part:
    """Return a runner behind the gateway, listening on a socket in `folder`."""
    listener = socket.socket(socket.AF_UNIX)
    # not by its name: a path of a socket has at most 103 bytes on macOS
    path = folder / f"{len(list(folder.glob('*.sock')))}.sock"
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
        number: int,
        others: Sequence[Part],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.part = part
        self.number = number  # several gateways are one part
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
        if is_portable():
            self.pid = _spawned(self.part, self.number)
            return
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become(self.part, self.number, self._others, supervisor)

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


def _spawned(part: Part, number: int) -> int:
    """Start a process of `part` without forking; return its id. It ends with this one."""
    listener = part.listener.fileno()
    numbers = map(str, (number, listener, os.getpid()))
    arguments = ["--service-name", part.name, *numbers, *part.options]
    command = [sys.executable, "-m", "service.supervision.worker_process", *arguments]
    os.set_inheritable(listener, True)
    try:
        return os.posix_spawn(sys.executable, command, os.environ, setsigmask=())
    finally:
        os.set_inheritable(listener, False)


def main(arguments: Sequence[str]) -> None:
    """Serve in a process that was not forked from the supervisor."""
    _, part, number, listener, parent, *options = arguments
    end_with(int(parent))
    use_metric_files()
    configure_logging(settings().log_format)
    _serve(part, int(number), int(listener), options)


def _become(part: Part, number: int, others: Sequence[Part], parent: int) -> NoReturn:
    """Serve in a fork of the supervisor."""
    status = 1
    try:
        end_with(parent)
        for other in others:
            other.listener.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _serve(part.name, number, part.listener.fileno(), part.options)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        logger.exception("%s failed", part.name)
    finally:
        os._exit(status)  # skips the cleanup of the supervisor, whose stack was forked


def _serve(part: str, number: int, listener: int, options: Sequence[str]) -> None:
    """Run BentoML's worker for a part until it ends."""
    os.setsid()  # a terminal's Ctrl-C goes to the supervisor only
    # removed by the supervisor, however this process ends; without space there is no folder, as
    # nothing that a request needs is written there
    with suppress(OSError):
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(f"-{os.getpid()}", f"{part}-")
    write_metrics_as(f"{part}-{number}")
    with suppress(OSError, ValueError):  # QEMU's stat has fewer fields
        show_as(f"diptych --service-name {part}")
    values = settings()
    keep_loggers(JsonLines if values.log_format == "json" else None)
    if values.is_one_process:
        _check()
    protocol = None
    if part == GATEWAY:
        from service.http.connections import ConnectionLimits, bounded_connection

        limits = ConnectionLimits(values.max_connections, values.max_connections_per_address)
        shared = _NUM_CONNECTIONS[: values.gateway_workers]
        protocol = bounded_connection(limits, shared, number)
    run_worker("service.gateway:Gateway", part, listener, options, protocol)


def _check() -> None:
    """Check before a single process starts, or end with the status that ends the supervisor."""
    from service.supervision.checks import check

    try:
        check(Role("all"), settings())
    except REFUSALS as error:
        print(f"diptych does not start: {error}", file=sys.stderr)
        sys.exit(os.EX_CONFIG)


if __name__ == "__main__":
    main(sys.argv[1:])
