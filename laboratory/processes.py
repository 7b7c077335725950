"""Server processes: start, readiness and stop. A server runs in its own process group."""

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

import httpx
import psutil

ROOT = Path(__file__).parents[1]
_START_TIMEOUT_S = 180
_STOP_TIMEOUT_S = 30


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


@contextmanager
def running(launch: Launch, log: Path) -> Iterator[int]:
    """Start a server, yield its process id once it is ready, and stop it, on SIGTERM too.

    Raise `RuntimeError` if it is never ready.
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
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        _wait_until_ready(launch, process, log)
        yield process.pid
    finally:
        # Its process group would not do: a server's workers may lead their own.
        workers = []
        with suppress(psutil.NoSuchProcess):
            workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        process.kill()
        process.wait()
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """Return a TCP port of this host that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(launch: Launch, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    url = launch.url + launch.ready_path
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=30, trust_env=False).is_success:
                return
        if process.poll() is not None or time.monotonic() > deadline_s:
            end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{shlex.join(launch.command)} is not ready; {log} ends with: {end}")
        time.sleep(0.1)
