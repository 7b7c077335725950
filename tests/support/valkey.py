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
needs_valkey = pytest.mark.skipif(
    _COMMAND is None,
    reason=(
        "no valkey-server here: limits shared between gateways are NOT tested (apt-get install"
        " valkey-server)"
    ),
)


class Valkey:
    """A server that keeps nothing on disk, and its process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = Redis(port=self.port)
        self._folder = folder

    def start(self) -> None:
        words = f"--bind 127.0.0.1 --port {self.port} --appendonly no --save".split()
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_COMMAND), *words, ""], cwd=self._folder, stdout=log, stderr=log
            )
        wait_until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Stop the process, whose socket still accepts connections, for as long as the context
        lasts.
        """
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
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        server.client.close()
