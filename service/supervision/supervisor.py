"""Starts, restarts and stops the processes without losing an accepted request.

    start   the gateway and the runner of each model, or one of them (service/supervision/roles.py)
    stop    on SIGTERM or SIGINT: the processes on the service's port drain, then the runners stop

The supervisor owns the listening sockets: connections to a process that died wait in the backlog
for the next one. A process is BentoML's worker for a part, forked from the supervisor, which has
imported all modules: it starts in milliseconds and shares their memory. Arguments and environment
are those of a worker of `bentoml serve` (BentoML 1.4.40, _bentoml_impl/server/serving.py).

`bentoml serve` does the same with circus, but (BentoML 1.4.40,
bentoml/_internal/utils/circus/__init__.py)

- looks for dead processes only every 10 s; SIGCHLD restarts one here at once;
- stops all processes at once, so the gateway drains without its runners;
- imports everything in each process, torch included: seconds for every restart, and nothing is
  shared in memory.
"""

import fcntl
import gc
import logging
import math
import mmap
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from runners.bentoml_internals import keep_loggers, run_worker, worker_environment
from service.settings import Settings, SettingsError, settings, variable
from service.supervision.roles import GATEWAY, Role, check
from service.telemetry.logs import JsonLines, RepeatedWarnings, TextLines, configure_logging
from tasks.catalog import CatalogError
from wire.artifacts.manifest import ArtifactError
from wire.host import end_with, memory_folder, show_as
from wire.telemetry.metric_files import (
    FOLDER_VARIABLE,
    remove_live_gauges,
    use_metric_files,
    write_metrics_as,
)

# __name__ is __main__, whose logger is not configured
logger = logging.getLogger("service.supervision.supervisor")

_PREFIX = "diptych-"
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
    # not by its name: a path of a socket has at most 107 bytes
    path = folder / f"{len(list(folder.glob('*.sock')))}.sock"
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return Part(name, listener, path.as_uri())


class WorkerProcess:
    """The process of a part: started, restarted when it ends, stopped."""

    def __init__(self, part: Part, number: int, others: Sequence[Part]) -> None:
        self.part = part
        self.number = number  # several gateways are one part
        self.pid: int | None = None  # set while it runs
        self._others = others
        self._started_s = 0.0
        self._next_start_s = -math.inf
        self._is_wanted = True

    def start_if_due(self) -> None:
        """Start the process unless it runs, was stopped, or pauses after a short life."""
        if self.pid is not None or not self._is_wanted or time.monotonic() < self._next_start_s:
            return
        self._started_s = time.monotonic()
        supervisor = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _become(self.part, self.number, self._others, supervisor)

    def note_end(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if self._is_wanted:
            logger.error(
                "%s (process %d) ended with status %d and is restarted",
                self.part.name,
                self.pid,
                code,
            )
        is_short = time.monotonic() - self._started_s < _SHORT_LIFE_S
        self._next_start_s = time.monotonic() + _PAUSE_S if is_short else -math.inf
        self.pid = None

    def stop(self, signum: signal.Signals) -> None:
        """Send `signum` to the process, and do not restart it."""
        self._is_wanted = False
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)


def _become(part: Part, number: int, others: Sequence[Part], parent: int) -> NoReturn:
    status = 1
    try:
        end_with(parent)
        for other in others:
            other.listener.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _serve(part, number)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        logger.exception("%s failed", part.name)
    finally:
        os._exit(status)  # skips the cleanup of the supervisor, whose stack was forked


def _serve(part: Part, number: int) -> None:
    os.setsid()  # a terminal's Ctrl-C goes to the supervisor only
    # removed by the supervisor, however this process ends; without space there is no folder, as
    # nothing that a request needs is written there
    with suppress(OSError):
        tempfile.tempdir = tempfile.mkdtemp(f"-{os.getpid()}", f"{part.name}-")
        os.environ["TMPDIR"] = tempfile.tempdir
    write_metrics_as(f"{part.name}-{number}")
    with suppress(OSError, ValueError):  # QEMU's stat has fewer fields
        show_as(f"diptych --service-name {part.name}")
    values = settings()
    keep_loggers(JsonLines if values.log_format == "json" else TextLines, RepeatedWarnings)
    protocol = None
    if part.name == GATEWAY:
        from service.http.connections import ConnectionLimits, bounded_connection

        limits = ConnectionLimits(values.max_connections, values.max_connections // 2)
        protocol = bounded_connection(limits, _NUM_CONNECTIONS[: values.gateway_workers], number)
    listener = part.listener.fileno()
    run_worker("service.gateway:Gateway", part.name, listener, part.options, protocol)


_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGALRM)
_TICK_S = 1.0
_FRONT_MARGIN_S = 10.0  # beyond the deadline of its last request
_RUNNERS_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class Supervisor:
    """The processes of one start: `front` share the service's port, `runners` are behind.

    The caller has blocked `_SIGNALS` in the main thread.
    """

    front: Sequence[WorkerProcess]
    runners: Sequence[WorkerProcess]
    metrics: Path

    def run(self, max_request_s: float) -> None:
        """Keep all processes running until a stop signal arrives; a second one is ignored."""
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        while self._next_signal() not in _STOP_SIGNALS:
            pass
        logger.info("stopping: draining accepted requests for up to %g s", max_request_s)
        # has its own copy of the socket; a draining gateway answers not_ready
        for process in self.front:
            process.part.listener.close()
        self._stop(self.front, max_request_s + _FRONT_MARGIN_S)
        self._stop(self.runners, _RUNNERS_STOP_S)
        logger.info("stopped")

    def _stop(self, processes: Sequence[WorkerProcess], limit_s: float) -> None:
        """Terminate `processes`, kill them after `limit_s`; keep the others running."""
        for process in processes:
            process.stop(signal.SIGTERM)
        deadline_s = time.monotonic() + limit_s
        while left := [process for process in processes if process.pid is not None]:
            if time.monotonic() > deadline_s:
                names = ", ".join(process.part.name for process in left)
                logger.error("killed after %g s: %s", limit_s, names)
                for process in left:
                    process.stop(signal.SIGKILL)
            self._next_signal()

    def _next_signal(self) -> int:
        """Start due processes, wait for a signal, record ended processes; return the signal."""
        for process in (*self.front, *self.runners):
            process.start_if_due()
        received = signal.sigwait(_SIGNALS)
        # every child that has ended; process 1 of a container also inherits orphans
        running = {process.pid: process for process in (*self.front, *self.runners)}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return received
            if pid == 0:
                return received
            if (ended := running.get(pid)) is not None:
                ended.note_end(status)
                remove_live_gauges(self.metrics, f"{ended.part.name}-{ended.number}")
            for temporary in self.metrics.parent.glob(f"*-{pid}/"):
                shutil.rmtree(temporary, ignore_errors=True)


def start(arguments: Sequence[str]) -> None:
    try:
        role = Role.parse(arguments)
        environment = role.environment(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        check(role, settings())
    except REFUSALS as error:
        sys.exit(f"diptych does not start: {error}")
    main(role)


def main(role: Role) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # pending until the first wait
    values = settings()
    configure_logging(values.log_format)
    # open files: often 1,024 are set and many more allowed
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    num_front = 1 if role.is_runner else values.gateway_workers
    if values.grpc_port and not role.is_runner:
        # a port in use: several gateways would share it, a single one would restart for ever
        _listen(values.host, values.grpc_port, "grpc_port").close()
    with run_folder() as folder:
        parts = (
            _front(role, values),
            *(runner_part(name, folder) for name in role.runners_behind(values)),
        )
        metrics = folder / "metrics"
        metrics.mkdir()
        os.environ.update(worker_environment({part.name: part.url for part in parts}))
        os.environ |= {FOLDER_VARIABLE: str(metrics), "TMPDIR": str(folder)}
        use_metric_files()
        _import_all(parts, values)

        def process(part: Part, number: int = 0) -> WorkerProcess:
            return WorkerProcess(part, number, [other for other in parts if other is not part])

        front = [process(parts[0], number) for number in range(num_front)]
        runners = [process(part) for part in parts[1:]]
        Supervisor(front, runners, metrics).run(values.request_timeout_s)


@contextmanager
def run_folder() -> Iterator[Path]:
    """Yield the one folder that a running service writes to; remove it afterwards.

    It is in memory where the host has a folder for that: a full or read-only disk does not affect
    the service; with prometheus_client's mapped files it would die of SIGBUS. The owner holds a
    lock on its folder until it ends, however it ends; the next start removes unlocked folders.
    """
    parent = memory_folder()
    # folders of killed supervisors
    for abandoned in parent.glob(f"{_PREFIX}*/"):
        with suppress(OSError):  # another user's, or in use
            abandoned_fd = os.open(abandoned, os.O_RDONLY)
            try:
                fcntl.flock(abandoned_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(abandoned)
            finally:
                os.close(abandoned_fd)
    # Other starts ignore its first name, under which it is not yet locked.
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
    folder = parent / unlocked.name.removeprefix(".")
    fd = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    unlocked.rename(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _front(role: Role, values: Settings) -> Part:
    tls_options = () if role.is_runner else tuple(bentoml_tls_options(values))
    return Part(role.front(), _listen(values.host, values.port, "port"), values.url, tls_options)


def bentoml_tls_options(settings: Settings) -> list[str]:
    if settings.tls_certificate_file is None:
        return []
    certificate = str(settings.tls_certificate_file)
    return ["--ssl-certfile", certificate, "--ssl-keyfile", str(settings.tls_key_file)]


def _listen(host: str, port: int, field: str) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        hint = f"{variable(field)} chooses another port"
        sys.exit(f"diptych does not start: cannot listen on {host}:{port}: {error}; {hint}")


def _import_all(parts: Sequence[Part], values: Settings) -> None:
    """Import the modules of the processes once, before the forks. None of them starts a thread."""
    if any(part.name != GATEWAY for part in parts):
        import_module("runners.model_worker")  # torch
    import_module("service.gateway")
    if values.otlp_endpoint is not None:
        import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")  # and the SDK
    gc.freeze()  # otherwise garbage collection would write to the shared pages, and so copy them


if __name__ == "__main__":
    start(sys.argv[1:])
