"""Debian's Valkey, or Redis, on a free port."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotListening

from tests.support.running_service import free_port
from tests.support.waiting import wait_until

_COMMAND = shutil.which("valkey-server") or shutil.which("redis-server")
needs_valkey = pytest.mark.skipif(
    _COMMAND is None,
    reason="no valkey-server here (apt-get install it): limits of several gateways are NOT tested",
)


class Valkey:
    """A server that keeps nothing on disk, and its process."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client = Redis(port=port)
        words = f"--bind 127.0.0.1 --port {port} --appendonly no --save".split()
        self._command = [str(_COMMAND), *words, ""]
        self._log = folder / "valkey.log"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._log.parent, stdout=log, stderr=log
            )
        wait_until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop the process for as long as the context lasts; its socket accepts connections."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with suppress(NotListening):
            return bool(self.client.ping())
        return False


@contextmanager
def running_valkey(folder: Path) -> Iterator[Valkey]:
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        server.client.close()
