"""The service with all its processes, on a free port."""

import functools
import itertools
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from service.rpc.proto.vision_pb2_grpc import VisionStub
from service.supervision.roles import Role
from tests.support.export_cli import ROOT, environment_with
from tests.support.forked_python import fork
from tests.support.processes import Process
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until_ready

SERVICE = (sys.executable, "-m", "service")
GATEWAY = "diptych"
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


OPEN = Access()


@dataclass(frozen=True, slots=True)
class RunningService:
    url: str
    process: Process
    log: Path
    grpc_address: str
    access: Access

    def client(self) -> httpx.Client:
        access = self.access
        headers = {} if access.key is None else bearer(access.key)
        return httpx.Client(base_url=self.url, timeout=60, verify=access.verify, headers=headers)

    def predict(
        self, image: bytes | None = None, headers: Mapping[str, str] = {}, **fields: object
    ) -> httpx.Response:
        with self.client() as http:
            return post_form(http, "/v1/predict", image or default_scene(), fields, headers)

    @contextmanager
    def chunks(self, image: bytes | None = None, **fields: object) -> Iterator[Iterator[str]]:
        files = {"image": image or default_scene()}
        form = form_of({**fields, "stream": True})
        with (
            self.client() as http,
            http.stream("POST", "/v1/predict", data=form, files=files) as response,
        ):
            yield response.iter_text()

    @contextmanager
    def vision(self) -> Iterator[Any]:
        with grpc.insecure_channel(self.grpc_address) as channel:
            yield VisionStub(channel)

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError), self.client() as client:
            return client.get("/readyz", timeout=30).is_success
        return False

    def wait_until_ready(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        wait_until_ready(self.is_ready, self.process, self.log, timeout_s)

    def parts(self) -> dict[str, int]:
        """Return the process of each part: `diptych` (the gateway), `florence-2-mini-runner`."""
        parts = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                words = " ".join(child.cmdline()).split()
                if "--service-name" in words:
                    parts[words[words.index("--service-name") + 1]] = child.pid
        return parts

    def send_signal(self, part: str, number: signal.Signals) -> int:
        pid = self.parts()[part]
        os.kill(pid, number)
        return pid

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.parts()[GATEWAY]).memory_info().rss)


@functools.cache
def default_scene() -> bytes:
    return scene_png()


def post_form(
    client: httpx.Client,
    path: str,
    image: bytes,
    fields: Mapping[str, object],
    headers: Mapping[str, str] = {},
) -> httpx.Response:
    form = form_of(fields)
    return client.post(path, data=form, files={"image": image}, headers=dict(headers))


def form_of(fields: Mapping[str, object]) -> dict[str, str]:
    """Return fields as texts; lists and truth values are JSON."""
    return {
        name: json.dumps(value) if isinstance(value, list | bool) else str(value)
        for name, value in fields.items()
    }


def parse_events(text: str) -> list[tuple[str, Any]]:
    """Return name and data of each server-sent event."""
    blocks = text.removesuffix("\n\n").split("\n\n")
    events = []
    for block in blocks:
        pairs = [line.split(": ", 1) for line in block.split("\n")]
        events.append(dict(pairs))
    return [(event.get("event", "message"), json.loads(event["data"])) for event in events]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def running_service(
    bentoml_home: Path,
    log: Path,
    access: Access = OPEN,
    command: Sequence[str] = SERVICE,
    start_timeout_s: float = _START_TIMEOUT_S,
    /,
    **settings: str,
) -> AbstractContextManager[RunningService]:
    """Start the service with `settings` as a user does; the context begins when it is ready."""
    environment = _with_ports(bentoml_home, settings)
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _served_by(process, environment, log, access, start_timeout_s)


def forked_service(
    bentoml_home: Path,
    log: Path,
    access: Access = OPEN,
    role: Sequence[str] = (),
    /,
    **settings: str,
) -> AbstractContextManager[RunningService]:
    """Do likewise, without the checks of `python -m service` and seconds of imports."""
    environment = Role.parse(role).environment(_with_ports(bentoml_home, settings))
    program = "from service.supervision import roles, supervisor;"
    program += f"supervisor.main(roles.Role.parse({[*role]!r}))"
    log.unlink(missing_ok=True)
    process = fork(("-c", program), environment, log, log)
    return _served_by(process, environment, log, access)


def _with_ports(bentoml_home: Path, settings: Mapping[str, str]) -> dict[str, str]:
    ports = {"DIPTYCH_PORT": str(free_port()), "DIPTYCH_GRPC_PORT": str(free_port())}
    return environment_with(bentoml_home, **(ports | dict(settings)))


@contextmanager
def _served_by(
    process: Process,
    environment: Mapping[str, str],
    log: Path,
    access: Access,
    start_timeout_s: float = _START_TIMEOUT_S,
) -> Iterator[RunningService]:
    host = environment.get("DIPTYCH_HOST", "127.0.0.1")
    url = f"{access.scheme}://{host}:{environment['DIPTYCH_PORT']}"
    grpc_address = f"{host}:{environment['DIPTYCH_GRPC_PORT']}"
    service = RunningService(url, process, log, grpc_address, access)
    try:
        service.wait_until_ready(start_timeout_s)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_TIMEOUT_S)


def free_port() -> int:
    """Return a free TCP port, below the system's: those may become another connection's."""
    while True:
        port = next(_PORTS)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
