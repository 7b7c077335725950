"""Small runners as separate processes."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from tests.support.export_cli import ROOT
from tests.support.running_service import free_port
from tests.support.waiting import wait_until

STOP_S = 60


class RunnerProcess:
    """A small runner, which can be killed, stopped and started again."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.name = name
        self.host = host
        self.port = port or free_port()
        self.url = f"http://{self.host}:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens."""
        program = [sys.executable, "-m", "tests.deploy.small_runner"]
        self.process = subprocess.Popen([*program, self.host, str(self.port), self.name], cwd=ROOT)
        wait_until(self._listens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def bring_back(self, kill: signal.Signals) -> None:
        """Undo what the signal `kill` has done."""
        if kill == signal.SIGSTOP:
            self.process.send_signal(signal.SIGCONT)
        else:
            self.stop()
            self.start()

    def stop(self) -> None:
        """End the process, whatever state it is in."""
        self.process.kill()
        self.process.wait(STOP_S)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex((self.host, self.port)) == 0


@contextmanager
def small_runners(*names: str) -> Iterator[list[RunnerProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(RunnerProcess(name)) for name in names]
