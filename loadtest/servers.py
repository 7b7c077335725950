"""Starts a server in a process group of its own, waits until it is ready, and ends it: ours, or a peer.

Every server has the same cores: those that this process may run on.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

ROOT = Path(__file__).parents[1]
Kind = Literal["diptych", "litserve", "fastapi"]
NUM_CORES = len(os.sched_getaffinity(0))

_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 30
# In /proc/PID/stat behind the name (man proc_pid_stat): parent; user and kernel time, of itself and of ended children.
_PARENT, _TIMES = 1, slice(11, 15)
_HEALTH = {"diptych": "/readyz", "litserve": "/health", "fastapi": "/health"}


class ServerError(Exception):
    """A server did not start, or does not answer."""


@dataclass(frozen=True, slots=True)
class Server:
    """How one server is started."""

    name: str
    kind: Kind
    description: str
    arguments: tuple[str, ...] = ()  # of a peer
    environment: Mapping[str, str] = field(default_factory=dict)  # of our service


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that listens on `port`."""

    command: tuple[str, ...]
    port: int
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"


def peers(num_cores: int) -> tuple[Server, ...]:
    """Return the peers at every setting that is tried; the best of them is what ours is compared with."""
    all_cores, one_core = ("--threads", str(num_cores)), ("--threads", "1")
    tried = [
        Server("fastapi", "fastapi", f"lock, {num_cores} threads", all_cores),
        Server("litserve 16", "litserve", f"batch 16, 50 ms, {num_cores} threads", (*all_cores, *_batch(16, 0.05))),
    ]
    if num_cores > 1:
        workers = (*one_core, "--workers", str(num_cores))
        tried.append(
            Server("litserve workers", "litserve", f"batch 4, 10 ms, {num_cores} workers", (*workers, *_batch(4, 0.01)))
        )
    return tuple(tried)


def more_peers(num_cores: int) -> tuple[Server, ...]:
    """Return further settings, worth a try where a model is small."""
    all_cores, one_core = ("--threads", str(num_cores)), ("--threads", "1")
    tried = [Server("litserve 8", "litserve", f"batch 8, 5 ms, {num_cores} threads", (*all_cores, *_batch(8, 0.005)))]
    if num_cores > 1:
        tried.append(Server("fastapi 1", "fastapi", "lock, 1 thread", one_core))
        tried.append(Server("litserve 1", "litserve", "batch 16, 50 ms, 1 thread", (*one_core, *_batch(16, 0.05))))
    return tuple(tried)


def _batch(max_batch_size: int, batch_timeout_s: float) -> tuple[str, ...]:
    return ("--max-batch-size", str(max_batch_size), "--batch-timeout-s", str(batch_timeout_s))


def peer_launch(server: Server, checkpoint: Path) -> Launch:
    """Return how a peer serves `checkpoint`."""
    port = free_port()
    module = f"loadtest.peers.{server.kind}_server"
    command = (sys.executable, "-m", module, str(checkpoint), "--port", str(port), *server.arguments)
    return Launch(command, port, _HEALTH[server.kind])


def diptych_launch(server: Server, model_id: str, folder: Path) -> Launch:
    """Return how our service serves one model of the bench's catalog.

    Settings are the defaults but for the time of a request: with 16 clients on a slow machine an image of real size
    waits longer. A setting in the environment of the bench goes to the service.
    """
    port = free_port()
    environment = {
        "DIPTYCH_MODELS": model_id,
        "DIPTYCH_CATALOG": str(folder / "catalog.yaml"),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_REQUEST_TIMEOUT_S": "900",
        "BENTOML_HOME": str(folder / "bentoml"),
        **server.environment,
    }
    return Launch((sys.executable, "-m", "service"), port, _HEALTH["diptych"], environment)


@contextmanager
def running(launch: Launch, log: Path) -> Iterator[int]:
    """Start a server, yield its process id when it is ready, and stop all of it; raise `ServerError`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as log_file:
        log_file.write(f"{shlex.join(launch.command)}\n")
        log_file.flush()
        process = subprocess.Popen(
            launch.command,
            cwd=ROOT,
            env=os.environ | {"BENTOML_DO_NOT_TRACK": "True"} | dict(launch.environment),
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(launch, process, log)
        yield process.pid
    finally:
        _stop(process)


def cpu_s(process_id: int) -> float:
    """Return the processor time, user and kernel, of a process and of all that come from it, ended ones included."""
    stats = _stats()
    ticks = (sum(map(int, stats[one][_TIMES])) for one in _descendants(process_id, stats) if one in stats)
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def _stats() -> dict[int, list[str]]:
    """Return the fields of /proc/PID/stat behind the name, of every process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended in this moment
            found[int(stat.parent.name)] = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return found


def _descendants(process_id: int, stats: Mapping[int, list[str]]) -> list[int]:
    """Return a process and all that come from it; a server's workers may be process groups of their own."""
    children = [child for child, fields in stats.items() if int(fields[_PARENT]) == process_id]
    return [process_id, *(one for child in children for one in _descendants(child, stats))]


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(launch: Launch, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while not _is_ready(launch):
        if process.poll() is not None or time.monotonic() > deadline_s:
            end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise ServerError(f"{shlex.join(launch.command)} is not ready; {log} ends with: {end}")
        time.sleep(0.1)


def _is_ready(launch: Launch) -> bool:
    try:
        return httpx.get(launch.url + launch.ready_path, timeout=30).is_success
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask the server to end, then end what is left of it."""
    started = _descendants(process.pid, _stats())
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    for process_id in started:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(process_id, signal.SIGKILL)
    process.wait()
