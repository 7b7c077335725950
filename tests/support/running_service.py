"""The service with all its processes, on a free port."""

import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.batches.store import Store
from service.supervision.roles import Role
from tests.support.export_cli import ROOT
from tests.support.forked_python import fork
from tests.support.processes import Process
from tests.support.waiting import wait_until_ready

SERVICE = (sys.executable, "-m", "service")
_START_TIMEOUT_S = 120
_STOP_TIMEOUT_S = 60
_FIRST_PORT = 10_000 + 100 * (os.getpid() % 60)
_PORTS = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + 100))


@dataclass(frozen=True, slots=True)
class Access:
    """Scheme, certificate and key of a service with access control."""

    scheme: str = "http"
    # True would load all certificates for each client: 8 ms, again and again while a test waits.
    verify: ssl.SSLContext | bool = False
    key: str | None = None


@dataclass(frozen=True, slots=True)
class RunningService:
    """A started service."""

    url: str
    process: Process
    log: Path
    grpc_address: str
    access: Access

    def client(self) -> httpx.Client:
        """Return an HTTP client of the service."""
        access = self.access
        headers = {} if access.key is None else {"Authorization": f"Bearer {access.key}"}
        return httpx.Client(base_url=self.url, timeout=60, verify=access.verify, headers=headers)

    def is_ready(self) -> bool:
        """Return True if the service is ready."""
        try:
            with self.client() as client:
                return client.get("/readyz", timeout=30).is_success
        except httpx.TransportError:
            return False

    def wait_until_ready(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Return when the service is ready; raise if it ends, or is not ready in time."""
        wait_until_ready(self.is_ready, self.process, self.log, timeout_s)

    def parts(self) -> dict[str, int]:
        """Return the process of each part: `diptych` is the gateway, `florence-2-mini-runner` a
        runner.
        """
        command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)]
        rows = [
            line.split()
            for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        ]
        return {
            row[row.index("--service-name") + 1]: int(row[0])
            for row in rows
            if "--service-name" in row
        }


OPEN = Access()


@contextmanager
def running_service(
    bentoml_home: Path,
    log: Path,
    access: Access = OPEN,
    command: Sequence[str] = SERVICE,
    start_timeout_s: float = _START_TIMEOUT_S,
    /,
    **settings: str,
) -> Iterator[RunningService]:
    """Start the service with `settings` (environment variables) as a user does, yield it when
    ready, stop it with SIGTERM.
    """
    environment = _with_ports(bentoml_home, settings)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    with _served_by(process, environment, log, access, start_timeout_s) as service:
        yield service


@contextmanager
def forked_service(
    bentoml_home: Path,
    log: Path,
    access: Access = OPEN,
    role: Sequence[str] = (),
    /,
    **settings: str,
) -> Iterator[RunningService]:
    """Do as `running_service`, without the checks of `python -m service` and seconds of imports."""
    if folder := settings.get("DIPTYCH_BATCHES_FOLDER"):
        Store(Path(folder)).prepare()
    parsed = Role.parse(role)
    environment = parsed.environment(_with_ports(bentoml_home, settings))
    with log.open("w") as output:
        program = (
            "from service.supervision.roles import Role;"
            "from service.supervision.supervisor import main;"
            f"main(Role.parse({[*role]!r}))"
        )
        process = fork(("-c", program), environment, output.fileno(), output.fileno())
    with _served_by(process, environment, log, access) as service:
        yield service


def _with_ports(bentoml_home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    ports = {"DIPTYCH_PORT": str(free_port()), "DIPTYCH_GRPC_PORT": str(free_port())}
    return service_environment(bentoml_home, **(ports | dict(settings)))


@contextmanager
def _served_by(
    process: Process,
    environment: Mapping[str, str],
    log: Path,
    access: Access,
    start_timeout_s: float = _START_TIMEOUT_S,
) -> Iterator[RunningService]:
    port = environment["DIPTYCH_PORT"]
    grpc_port = environment["DIPTYCH_GRPC_PORT"]
    service = RunningService(
        f"{access.scheme}://127.0.0.1:{port}", process, log, f"127.0.0.1:{grpc_port}", access
    )
    try:
        service.wait_until_ready(start_timeout_s)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_TIMEOUT_S)


def service_environment(bentoml_home: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a service that is to start."""
    return (
        os.environ | {"BENTOML_HOME": str(bentoml_home), "BENTOML_DO_NOT_TRACK": "True"} | settings
    )


def free_port() -> int:
    """Return a TCP port that nobody uses.

    A port from the system could become another connection's before it is used: these lie below the
    system's, a hundred for each process of the tests.
    """
    while True:
        port = next(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
