"""Server processes: start, readiness, stop; processor time, memory, descriptors and threads as
Linux counts them.

A server runs in its own process group on the cores of this process. Its descendants are measured
with it.
"""

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
NUM_CORES = len(os.sched_getaffinity(0))

_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 30
# Fields of /proc/PID/stat after the name (man proc_pid_stat): parent; user and kernel time of the
# process and of its ended children.
_PARENT = 1
_TIMES = slice(11, 15)
_KB = 1024
_GONE = (FileNotFoundError, ProcessLookupError)  # the process ended while it was read


class ServerError(Exception):
    """A server does not become ready or does not answer."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A command whose server listens on `port`."""

    command: tuple[str, ...]
    port: int
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """Resources of one process."""

    memory_mb: float  # proportional set size: a page shared by n processes counts 1/n
    num_fds: int
    num_threads: int


@contextmanager
def running(launch: Launch, log: Path) -> Iterator[int]:
    """Start a server, yield its process id once it is ready, and stop it.

    Raise `ServerError` if it is never ready.
    """
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
        started = _descendants(process.pid, _stats())
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        for process_id in started:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        process.wait()


@contextmanager
def suspended(process_id: int) -> Iterator[None]:
    """Suspend a process and its descendants: a server that polls its queues takes processor time
    when it is idle.
    """
    suspended_ids = _descendants(process_id, _stats())
    for one in suspended_ids:
        os.kill(one, signal.SIGSTOP)
    try:
        yield
    finally:
        for one in suspended_ids:
            os.kill(one, signal.SIGCONT)


def free_port() -> int:
    """Return a TCP port of this host that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def cpu_s(process_id: int) -> float:
    """Return the user and kernel time of a process and its descendants, also ended ones."""
    return sum(cpu_s_by_process(process_id).values())


def cpu_s_by_process(process_id: int) -> dict[int, float]:
    """Return the time of a process and of each descendant by process id.

    Each includes its own ended children.
    """
    stats = _stats()
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    running = (one for one in _descendants(process_id, stats) if one in stats)
    return {one: sum(map(int, stats[one][_TIMES])) / ticks_per_s for one in running}


def machine_cpu_s() -> float:
    """Return the processor time of all processes since the machine started."""
    user, nice, system, _idle, _waiting, *interrupts = (
        Path("/proc/stat").read_text(encoding="utf-8").split()[1:8]
    )
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


def part_ids(process_id: int) -> dict[str, int]:
    """Return the ids of a service's supervisor and of the processes that it started, by name."""
    found = {}
    for one in _descendants(process_id, _stats()):
        with suppress(*_GONE):
            words = (
                Path(f"/proc/{one}/cmdline").read_text(encoding="utf-8").replace("\0", " ").split()
            )
            unnamed = "supervisor" if one == process_id else f"process {one}"
            name = (
                words[words.index("--service-name") + 1] if "--service-name" in words else unnamed
            )
            found[name] = one
    return found


def use_by_name(process_id: int) -> dict[str, ProcessUse]:
    """Return the resources of a service's supervisor and of the processes that it started."""
    found = {}
    for name, one in part_ids(process_id).items():
        with suppress(*_GONE):
            folder = Path(f"/proc/{one}")
            pss = (folder / "smaps_rollup").read_text(encoding="utf-8").partition("\nPss:")[2]
            found[name] = ProcessUse(
                memory_mb=int(pss.split()[0]) * _KB / 1e6,
                num_fds=len(list((folder / "fd").iterdir())),
                num_threads=len(list((folder / "task").iterdir())),
            )
    return found


def _stats() -> dict[int, list[str]]:
    """Return the fields of /proc/PID/stat after the name, of every process."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(*_GONE):
            found[int(stat.parent.name)] = (
                stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            )
    return found


def _descendants(process_id: int, stats: Mapping[int, list[str]]) -> list[int]:
    """Return a process and its descendants.

    Process groups would not do: a server's workers may lead their own.
    """
    found = [process_id]
    for child, fields in stats.items():
        if int(fields[_PARENT]) == process_id:
            found += _descendants(child, stats)
    return found


def _wait_until_ready(launch: Launch, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    url = launch.url + launch.ready_path
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=30, trust_env=False).is_success:
                return
        if process.poll() is not None or time.monotonic() > deadline_s:
            end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise ServerError(f"{shlex.join(launch.command)} is not ready; {log} ends with: {end}")
        time.sleep(0.1)
