"""`python -m tests.service.supervision.supervised FOLDER`: a supervisor over waiting processes.

Each writes a line when it starts and when it stops. The runner fails at its first start; the
gateway takes a while to drain.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from service.supervision.supervisor import _SIGNALS, Part, Supervisor, WorkerProcess
from service.telemetry.logs import configure_logging
from wire.telemetry.metric_files import FOLDER_VARIABLE

DRAIN_S = 0.3
FAILED = 3  # exit status


class WaitingListener(socket.socket):
    """Waits for SIGTERM where BentoML's worker would be run."""

    def __init__(self, name: str, drain_s: float, failed: Path | None) -> None:
        super().__init__(socket.AF_UNIX)
        self._name = name
        self._drain_s = drain_s
        self._failed = failed  # exists after the first start, which fails

    def fileno(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        self._write("starts")
        if self._failed is not None and not self._failed.exists():
            self._failed.touch()
            sys.exit(FAILED)
        signal.sigwait([signal.SIGTERM])
        time.sleep(self._drain_s)
        self._write("stops")
        sys.exit(0)

    def _write(self, event: str) -> None:
        os.write(1, f"{self._name} {event} {os.getpid()}\n".encode())


def main(folder: Path) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    configure_logging("text")
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ |= {FOLDER_VARIABLE: str(metrics), "TMPDIR": str(folder)}
    gateway = Part("gateway", WaitingListener("gateway", DRAIN_S, None), "")
    runner = Part("runner", WaitingListener("runner", 0, folder / "failed"), "")
    front = [WorkerProcess(gateway, number, [runner]) for number in range(2)]
    Supervisor(front, [WorkerProcess(runner, 0, [gateway])], metrics).run(5)
    runner.listener.close()  # else Python would describe it by its `fileno`


if __name__ == "__main__":
    main(Path(sys.argv[1]))
