"""Debian's Valkey, or Redis, on a free port."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotListening

from tests.support.running_service import free_port
from tests.support.waiting import wait_until

_COMMAND = shutil.which("valkey-server") or shutil.which("redis-server")
HAS_VALKEY = _COMMAND is not None
MISSING_VALKEY = (
    "no valkey-server here: limits shared between gateways are NOT tested (apt-get install"
    " valkey-server)"
)
needs_valkey = pytest.mark.skipif(not HAS_VALKEY, reason=MISSING_VALKEY)


class Valkey:
    """A server that keeps nothing on disk, and its process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = Redis(port=self.port)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; return when it answers."""
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_COMMAND), *options], cwd=self._folder, stdout=log, stderr=log
            )
        wait_until(self._answers)

    def kill(self) -> None:
        """End the server at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop the process, whose socket still accepts connections, for as long as the context
        lasts.
        """
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except NotListening:
            return False


@contextmanager
def running_valkey(folder: Path) -> Iterator[Valkey]:
    """Start a server and end it."""
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        server.client.close()
