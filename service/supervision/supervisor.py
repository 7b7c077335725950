"""Starts, restarts and stops the processes without losing an accepted request.

    start   the gateway and the runner of each model, or one of them (service/supervision/roles.py)
    stop    on SIGTERM or SIGINT: the processes on the service's port drain, then the runners stop

The supervisor owns the listening sockets: connections to a process that died wait in the backlog
for the next one.

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
from importlib import import_module
from pathlib import Path

from service.settings import Settings, settings, variable
from service.supervision.roles import GATEWAY, Role
from service.supervision.worker_process import (
    BACKLOG,
    METRICS_FOLDER,
    REFUSALS,
    Part,
    WorkerProcess,
    runner_part,
    worker_environment,
)
from service.telemetry.logs import configure_logging
from wire.host import is_portable, memory_folder
from wire.telemetry.metric_files import remove_live_gauges, use_metric_files

_PREFIX = "diptych-"


# __name__ is __main__, whose logger is not configured
logger = logging.getLogger("service.supervision.supervisor")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGALRM)
_TICK_S = 1.0
_OPEN_MAX = 10_240  # macOS, sys/syslimits.h
_FRONT_MARGIN_S = 10.0  # beyond the deadline of its last request
_RUNNERS_STOP_S = 10.0


class Supervisor:
    """The processes of one start: `front` share the service's port, `runners` are behind.

    The caller has blocked `_SIGNALS` in the main thread.
    """

    def __init__(
        self, front: Sequence[WorkerProcess], runners: Sequence[WorkerProcess], metrics: Path
    ) -> None:
        self._front = front
        self._runners = runners
        self._metrics = metrics

    def run(self, max_request_s: float) -> None:
        """Keep all processes running until a stop signal arrives; a second one is ignored."""
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        while self._next_signal() not in _STOP_SIGNALS:
            pass
        logger.info("stopping: draining accepted requests for up to %g s", max_request_s)
        # has its own copy of the socket; a draining gateway answers not_ready
        for process in self._front:
            process.part.listener.close()
        self._stop(self._front, max_request_s + _FRONT_MARGIN_S)
        self._stop(self._runners, _RUNNERS_STOP_S)
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
        for process in (*self._front, *self._runners):
            process.start_if_due()
        received = signal.sigwait(_SIGNALS)
        # every child that has ended; process 1 of a container also inherits orphans
        running = {process.pid: process for process in (*self._front, *self._runners)}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return received
            if pid == 0:
                return received
            if (ended := running.get(pid)) is not None:
                if os.waitstatus_to_exitcode(status) == os.EX_CONFIG:
                    sys.exit(1)
                ended.note_end(status)
                remove_live_gauges(self._metrics, f"{ended.part.name}-{ended.number}")
            for temporary in self._metrics.parent.glob(f"*-{pid}/"):
                shutil.rmtree(temporary, ignore_errors=True)


def start(arguments: Sequence[str]) -> None:
    """Run until a stop signal, or exit with one line about the setting or artifact to fix.

    A single process checks itself: what the checks import would stay in the supervisor's memory.
    """
    try:
        role = Role.parse(arguments)
        environment = role.environment(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        if role.name != "all" or not settings().is_one_process:
            from service.supervision.checks import check

            check(role, settings())
    except REFUSALS as error:
        sys.exit(f"diptych does not start: {error}")
    main(role)


def main(role: Role) -> None:
    """Run a role, whose settings and artifacts are checked, until a stop signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # pending until the first wait
    values = settings()
    configure_logging(values.log_format)
    # open files: often 1,024 are set and many more allowed
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:  # macOS allows any number and refuses more than OPEN_MAX
        most = _OPEN_MAX
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
        os.environ.update(worker_environment(parts, folder))
        use_metric_files()
        if not is_portable():
            _import_all(parts, values)

        def process(part: Part, number: int = 0) -> WorkerProcess:
            return WorkerProcess(part, number, [other for other in parts if other is not part])

        front = [process(parts[0], number) for number in range(num_front)]
        runners = [process(part) for part in parts[1:]]
        Supervisor(front, runners, folder / METRICS_FOLDER).run(values.request_timeout_s)


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
    url = f"{'https' if tls_options else 'http'}://{values.host}:{values.port}"
    return Part(role.front(), _listen(values.host, values.port, "port"), url, tls_options)


def bentoml_tls_options(settings: Settings) -> list[str]:
    """Return the options of BentoML's worker for the HTTP port."""
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
    """Import the modules of the processes once, before the forks. None of them starts a thread.

    With one process nothing would be shared, and the supervisor would only keep a copy.
    """
    if any(part.name != GATEWAY for part in parts):
        import_module("runners.model_worker")  # torch
    if not values.is_one_process:
        import_module("service.gateway")
    if values.otlp_endpoint is not None:
        import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")  # and the SDK
    gc.freeze()  # otherwise garbage collection would write to the shared pages, and so copy them


if __name__ == "__main__":
    start(sys.argv[1:])
