"""How long a polite client waits while another party misbehaves.

    python -m loadtest.neighbours [--url URL] [--grpc HOST:PORT] [--seconds S] [SCENARIO...]

The polite client asks florence-2-mini for a caption twice a second, alone and then beside each
scenario; time counts from when a request is due. The other party is a process of its own, at the
address 127.0.0.9, whose hosts and engines are on this machine. Without --url the service is started
and ended. The exit status is 1 if a 95th percentile exceeds both limits.

A scenario is a coroutine of `Party` that runs until it is cancelled, in the table SCENARIOS.
"""

import argparse
import asyncio
import base64
import json
import math
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
MAX_RATIO = 3.0
MAX_S = 0.5
_MODEL = "florence-2-mini"
_ENGINE = "foreign"
_SCENE = ROOT / "service" / "web" / "samples" / "scene.png"
_ADDRESS = "127.0.0.9"  # of the other party
_INTERVAL_S = 0.5
_SETTLE_S = 2.0  # the other party is at work
_TIMEOUT_S = 60.0
_START_S = 180.0
_TOKEN = "0" * 40  # of Label Studio, whose host may have a private address
_CONFIG = '<View><Image name="image" value="$image"/><TextArea name="a" toName="image"/></View>'

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
_TOKEN_CHUNK = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
_NAMES = b'{"choices": [], ' + b", ".join(b'"%d": 0' % number for number in range(400_000))


@dataclass(frozen=True, slots=True)
class Response:
    """Bytes of a host: a head, then a block again and again until the client has gone."""

    head: bytes
    block: bytes

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # cancelled: the scenario has ended
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.head)
            while not writer.is_closing():
                writer.write(self.block)
                await writer.drain()
        writer.close()


def endless(head: bytes, unit: bytes) -> Response:
    return Response(head, unit * (1 + 16_384 // len(unit)))


@dataclass(slots=True)
class Party:
    """The other party: its requests to the service, and the hosts that the service calls."""

    url: str
    grpc_address: str
    file_port: int
    engine_port: int
    answers: Counter[str] = field(default_factory=Counter)

    async def files(self, response: Response, num_requests: int) -> None:
        """Ask about files of a host, so many at a time."""
        body = {"tasks": [{"data": {"image": "/data/a.png"}}], "label_config": _CONFIG}
        password = base64.b64encode(f":{_TOKEN}".encode()).decode()
        headers = {"Authorization": f"Basic {password}"}
        path = f"/integrations/label-studio/{_MODEL}/predict"
        async with await asyncio.start_server(response.serve, "127.0.0.1", self.file_port):
            await self.repeat(num_requests, path, body, headers)

    async def engine(
        self, responses: Sequence[Response], num_requests: int, is_streamed: bool = False
    ) -> None:
        """Ask the model of an engine, so many requests at a time; it answers in each way."""
        turns = iter(range(10**9))

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await responses[next(turns) % len(responses)].serve(reader, writer)

        body = {"task": "captioning", "model": _ENGINE, "stream": is_streamed}
        body["image"] = encoded_scene()
        async with await asyncio.start_server(serve, "127.0.0.1", self.engine_port):
            await self.repeat(num_requests, "/v1/predict", body)

    async def repeat(
        self, num_requests: int, path: str, body: object, headers: dict[str, str] | None = None
    ) -> None:
        """Send a request again and again until cancelled, so many at a time."""
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(local_address=_ADDRESS),
            base_url=self.url,
            headers=headers,
            timeout=_TIMEOUT_S,
        ) as client:

            async def send() -> None:
                while True:
                    try:
                        response = await client.post(path, json=body)
                        self.answers[str(response.status_code)] += 1
                    except httpx.TransportError as error:
                        self.answers[type(error).__name__] += 1

            await asyncio.gather(*(send() for _ in range(num_requests)))


Scenario = Callable[[Party], Awaitable[None]]
_OF_HOSTS = ("host-", "engine-")  # a service calls them by its settings
MIXED = (
    endless(STREAM, b"\n"),
    endless(STREAM, b"{}\n"),
    endless(STREAM, _TOKEN_CHUNK),
    Response(JSON, _NAMES),
    endless(CHUNKED, b"1\r\n\n\r\n"),
)
SCENARIOS: dict[str, Scenario] = {
    "nobody": lambda _: asyncio.sleep(_TIMEOUT_S),
    "host-continue-1": lambda party: party.files(endless(b"", CONTINUE), 1),
    "host-continue-8": lambda party: party.files(endless(b"", CONTINUE), 8),
    "host-chunks-1": lambda party: party.files(endless(CHUNKED, b"1\r\nx\r\n"), 1),
    "host-chunks-8": lambda party: party.files(endless(CHUNKED, b"1\r\nx\r\n"), 8),
    "engine-continue-1": lambda party: party.engine([endless(b"", CONTINUE)], 1),
    "engine-objects-1": lambda party: party.engine([endless(STREAM, b"{}\n")], 1),
    "engine-newlines-1": lambda party: party.engine([endless(STREAM, b"\n")], 1),
    "engine-text-24": lambda party: party.engine([endless(STREAM, _TOKEN_CHUNK)], 24, True),
    "engine-mixed-24": lambda party: party.engine(MIXED, 24),
}


def encoded_scene() -> str:
    return base64.b64encode(_SCENE.read_bytes()).decode()


def run_party(
    scenario: str, party: Party, seconds: float, answers: "multiprocessing.Queue[dict[str, int]]"
) -> None:
    """Run a scenario in this process, for a time; send the counts of its answers."""

    async def run() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await SCENARIOS[scenario](party)

    asyncio.run(run())
    answers.put(dict(party.answers))


async def polite_latencies(url: str, seconds: float) -> list[float]:
    """Return the seconds of each answer to a polite client; infinite for another status."""
    body = {"task": "captioning", "model": _MODEL, "image": encoded_scene()}
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:

        async def ask(due_s: float) -> float:
            await asyncio.sleep(due_s - time.monotonic())
            response = await client.post("/v1/predict", json=body)
            return time.monotonic() - due_s if response.status_code == 200 else math.inf

        start_s = time.monotonic()
        num_requests = round(seconds / _INTERVAL_S)
        asking = (ask(start_s + index * _INTERVAL_S) for index in range(num_requests))
        return await asyncio.gather(*asking)


def p95(latencies_s: Sequence[float]) -> float:
    return sorted(latencies_s)[math.ceil(0.95 * len(latencies_s)) - 1]


def measure(scenario: str, party: Party, seconds: float) -> tuple[list[str], bool]:
    """Return the cells of a row, and whether it is within the limits."""
    alone_s = asyncio.run(polite_latencies(party.url, seconds))
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[dict[str, int]] = context.Queue()
    other = context.Process(
        target=run_party, args=(scenario, party, seconds + 2 * _SETTLE_S, answers)
    )
    other.start()
    time.sleep(_SETTLE_S)
    beside_s = asyncio.run(polite_latencies(party.url, seconds))
    counts = answers.get(timeout=_TIMEOUT_S)
    other.join()
    ratio = p95(beside_s) / p95(alone_s)
    cells = [scenario, f"{statistics.median(alone_s):.3f}", f"{p95(alone_s):.3f}"]
    cells += [f"{statistics.median(beside_s):.3f}", f"{p95(beside_s):.3f}", f"{ratio:.1f}"]
    cells.append(", ".join(f"{count} × {status}" for status, count in sorted(counts.items())))
    return cells, ratio <= MAX_RATIO or p95(beside_s) <= MAX_S


@contextmanager
def started_service(party: Party, port: int, folder: Path) -> Iterator[None]:
    """Run the service with the engine and the files of the other party."""
    engine_url = f"http://127.0.0.1:{party.engine_port}/v1"
    row = {"id": _ENGINE, "family": "openai", "url": engine_url, "model": "m", "dialect": "gemma"}
    engines = folder / "engines.json"
    engines.write_text(json.dumps({"models": [row]}), encoding="utf-8")
    settings = {
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": party.grpc_address.rpartition(":")[2],
        "DIPTYCH_MODELS": _MODEL,
        "DIPTYCH_REMOTE_MODELS": str(engines),
        "DIPTYCH_LABEL_STUDIO_URL": f"http://127.0.0.1:{party.file_port}",
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "service"]
        environment = os.environ | settings
        service = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + _START_S
        while not is_ready(party.url):
            if service.poll() is not None or time.monotonic() > deadline_s:
                sys.exit((folder / "log").read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.2)
        yield
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()


def is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz").status_code == 200
    return False


def free_ports(number: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def main() -> int:
    """Measure the scenarios, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.neighbours")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--url", help="a running service: no scenarios of hosts and engines")
    parser.add_argument("--grpc", default="127.0.0.1:3001", help="its gRPC address")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    options = parser.parse_args()
    scenarios = options.scenarios or list(SCENARIOS)
    if unknown := set(scenarios) - set(SCENARIOS):
        parser.error(f"{', '.join(unknown)}: the scenarios are {', '.join(SCENARIOS)}")
    if options.url:
        scenarios = [name for name in scenarios if not name.startswith(_OF_HOSTS)]
    port, grpc_port, file_port, engine_port = free_ports(4)
    if options.url is None:
        url, grpc_address = f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"
    else:
        url, grpc_address = options.url, options.grpc
    party = Party(url, grpc_address, file_port, engine_port)
    is_within = True
    with tempfile.TemporaryDirectory() as folder:
        service = nullcontext() if options.url else started_service(party, port, Path(folder))
        with service:
            asyncio.run(polite_latencies(url, 2))  # the first requests warm up
            print("| beside | p50 alone, s | p95 | p50 beside, s | p95 | p95 ratio | answers |")
            print("|---|---:|---:|---:|---:|---:|---|", flush=True)
            for scenario in scenarios:
                cells, is_row_within = measure(scenario, party, options.seconds)
                print(f"| {' | '.join(cells)} |", flush=True)
                is_within &= is_row_within
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
