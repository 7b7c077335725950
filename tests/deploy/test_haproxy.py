"""The real HAProxy with the configuration of deploy/haproxy, over two small servers that speak a
runner's HTTP.
"""

import asyncio
import itertools
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from tests.deploy.small_runner import CACHE_SIZE, KEY, NUM_STREAM_LINES
from tests.support.export_cli import ROOT
from tests.support.haproxy import (
    CONFIGURATION,
    MODELS,
    HaProxy,
    haproxy,
    needs_haproxy,
    running_haproxy,
)
from tests.support.name_server import name_server
from tests.support.processes import is_open
from tests.support.running_service import free_port
from tests.support.waiting import wait_until

pytestmark = needs_haproxy

MODEL = "florence-2-mini"
DOMAIN = "diptych.svc.cluster.local"
PIXELS = bytes(3 * 192 * 192)  # more than HAProxy's buffer, as every model's
NUM_CLIENTS = 16
CALL_S = 0.03
PAUSE_S = 0.1  # service/inference/runner_calls.py
STOP_S = 60
BROKEN = (502, 503)


class RunnerProcess:
    """A small runner, which can be killed, stopped and started again."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int | None = None) -> None:
        self.name = name
        self.host = host
        self.port = port or free_port()
        self.start()

    def start(self) -> None:
        """Start it, and return when it listens."""
        program = [sys.executable, "-m", "tests.deploy.small_runner"]
        self.process = subprocess.Popen([*program, self.host, str(self.port), self.name], cwd=ROOT)
        wait_until(lambda: is_open(self.port, self.host))

    def stop(self) -> None:
        """End the process, whatever state it is in."""
        self.process.kill()
        self.process.wait(STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Calls:
    """Calls as the gateway makes them: first without pixels, then with; a broken one is repeated
    once after a pause.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.answers: list[tuple[str, Any]] = []  # key, and None where the call failed for good
        self.num_repeated = 0
        self.in_flight: set[object] = set()

    async def make(self, key: str, seconds: float) -> None:
        """Make one call that the runner works on for `seconds`."""
        token = object()
        self.in_flight.add(token)
        status, answer = await self._call(key, b"", seconds)
        if status == 404:
            _, answer = await self._call(key, PIXELS, seconds)
        self.in_flight.remove(token)
        self.answers.append((key, answer))

    async def _call(
        self, key: str, body: bytes, seconds: float, is_repeated: bool = False
    ) -> tuple[int, Any]:
        headers = {KEY: key, "X-Seconds": str(seconds)}
        url = f"{self._url}/write"
        status, answer = BROKEN[0], None
        with suppress(aiohttp.ClientError):
            async with self._session.post(url, data=body, headers=headers) as response:
                answer = await response.json() if response.ok else None
                status = response.status
        if status not in BROKEN or is_repeated:
            return status, answer
        self.num_repeated += 1
        await asyncio.sleep(PAUSE_S)
        return await self._call(key, body, seconds, is_repeated=True)

    async def make_all(
        self, keys: Iterable[str], num_clients: int = 1, seconds: float = 0.0
    ) -> None:
        """Make the calls, `num_clients` at a time."""
        remaining = iter(keys)

        async def client() -> None:
            for key in remaining:
                await self.make(key, seconds)

        await asyncio.gather(*(client() for _ in range(num_clients)))

    def all_are_right(self) -> bool:
        return all(answer and answer["key"] == key for key, answer in self.answers)

    def runners(self, start: int = 0) -> list[str]:
        """Return who answered each call, from the call `start` on."""
        return [answer["runner"] for _, answer in self.answers[start:] if answer]


def image_key(number: int) -> str:
    """Return a key as the gateway's: 64 hexadecimal digits."""
    return f"{number * 0x9E3779B97F4A7C15:064x}"[-64:]


KEYS = [image_key(number) for number in range(CACHE_SIZE)]


@pytest.fixture
def runners() -> Iterator[list[RunnerProcess]]:
    with RunnerProcess("a") as first, RunnerProcess("b") as second:
        yield [first, second]


@pytest.fixture
def balancer(runners: list[RunnerProcess], tmp_path: Path) -> Iterator[HaProxy]:
    urls = [f"http://127.0.0.1:{runner.port}" for runner in runners]
    with haproxy({MODEL: urls}, tmp_path) as running:
        yield running


@asynccontextmanager
async def calls_to(balancer: HaProxy) -> AsyncIterator[Calls]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Calls(session, balancer.url(MODEL))


async def wait_for_ready(balancer: HaProxy, count: int) -> None:
    async with asyncio.timeout(60):
        while await asyncio.to_thread(balancer.num_ready, MODEL) != count:
            await asyncio.sleep(0.05)


def test_configurations_have_no_warning(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```haproxy\n(.*?)```", page, re.DOTALL)
    (tmp_path / "hosts.cfg").write_text(example)
    for models in (MODELS, tmp_path / "hosts.cfg"):
        command = ["haproxy", "-c", "-f", str(CONFIGURATION), "-f", str(models)]
        variables = os.environ | {"RUNNERS_DOMAIN": DOMAIN}
        run = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert (run.returncode, run.stdout + run.stderr) == (0, "")


async def test_an_image_stays_with_one_runner(balancer: HaProxy) -> None:
    async with calls_to(balancer) as calls:
        await calls.make_all(KEYS * 2)
        assert calls.all_are_right()
        hits = [answer["hit"] for _, answer in calls.answers]
        assert hits == [False] * CACHE_SIZE + [True] * CACHE_SIZE
        assert calls.runners()[:CACHE_SIZE] == calls.runners(CACHE_SIZE)
        assert min(Counter(calls.runners()).values()) > CACHE_SIZE / 2


async def test_calls_about_one_image_are_shared(balancer: HaProxy) -> None:
    async with calls_to(balancer) as calls:
        await calls.make_all([image_key(1)] * 200, NUM_CLIENTS, CALL_S)
        assert calls.all_are_right()
        assert set(calls.runners()) == {"a", "b"}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_nothing_is_lost_with_a_runner(
    balancer: HaProxy, runners: list[RunnerProcess], end: signal.Signals
) -> None:
    random_numbers = random.Random(2)
    stopped = asyncio.Event()

    def keys() -> Iterator[str]:
        while not stopped.is_set():
            yield random_numbers.choice(KEYS)

    async with calls_to(balancer) as calls:
        load = asyncio.create_task(calls.make_all(keys(), NUM_CLIENTS, CALL_S))
        try:
            assert set(await next_runners(calls)) == {"a", "b"}
            runners[0].process.send_signal(end)
            await wait_for_ready(balancer, 1)
            interrupted = set(calls.in_flight)
            assert set((await next_runners(calls))[NUM_CLIENTS:]) == {"b"}
            async with asyncio.timeout(60):  # none hangs at the other
                while interrupted & calls.in_flight:
                    await asyncio.sleep(0.05)
            bring_back(runners[0], end)
            await wait_for_ready(balancer, 2)
            assert set(await next_runners(calls)) == {"a", "b"}
        finally:
            stopped.set()
            await load
        assert calls.all_are_right()


async def next_runners(calls: Calls) -> list[str]:
    """Return who answers the next calls."""
    start = len(calls.answers)
    while len(calls.answers) < start + 10 * NUM_CLIENTS:
        await asyncio.sleep(0.01)
    return calls.runners(start)


def bring_back(runner: RunnerProcess, end: signal.Signals) -> None:
    if end == signal.SIGSTOP:
        runner.process.send_signal(signal.SIGCONT)
    else:
        assert runner.process.wait(STOP_S) == (0 if end == signal.SIGTERM else -end)
        runner.start()


@pytest.mark.parametrize("path", ["/write", "/stream"])
async def test_disconnection_ends_the_call_at_the_runner(
    balancer: HaProxy, path: str, tmp_path: Path
) -> None:
    aborted = tmp_path / "aborted"

    headers = {KEY: image_key(1), "X-Seconds": "60", "X-Abort-File": str(aborted)}
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            async with (
                asyncio.timeout(0.5),
                session.post(balancer.url(MODEL) + path, data=PIXELS, headers=headers),
            ):
                await asyncio.sleep(60)
    wait_until(lambda: aborted.exists() and aborted.read_text() == f"{path}\n")


def test_a_stream_comes_line_by_line(balancer: HaProxy) -> None:
    async def ask() -> list[float]:
        loop = asyncio.get_running_loop()
        url = f"{balancer.url(MODEL)}/stream"
        headers = {KEY: image_key(1), "X-Seconds": "1"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=PIXELS, headers=headers) as response,
        ):
            return [loop.time() async for _ in response.content]

    times_s = asyncio.run(ask())
    assert len(times_s) == NUM_STREAM_LINES
    assert times_s[-1] - times_s[0] > 0.1  # buffered lines come together


@contextmanager
def sidecar(dns_port: int, pod_port: int, folder: Path) -> Iterator[HaProxy]:
    """Run HAProxy with models.cfg, but for the ports and the address of the name server."""
    shipped = MODELS.read_text(encoding="utf-8")
    names = re.findall(r"^listen (\S+)$", shipped, re.MULTILINE)
    ports = {model_id: free_port() for model_id in names}
    bound = itertools.cycle(ports.values())
    models = re.sub(r"(?<=bind 127\.0\.0\.1:)\d+", lambda _: str(next(bound)), shipped)
    models = models.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{dns_port}")
    models = models.replace(':3000"', f':{pod_port}"')
    with running_haproxy(models, ports, folder, {"RUNNERS_DOMAIN": DOMAIN}) as running:
        yield running


def test_pods_come_and_go_with_dns(tmp_path: Path) -> None:
    port = free_port()
    name = f"{MODEL}-runner.{DOMAIN}"
    hosts = ("127.0.0.2", "127.0.0.3")
    keys = KEYS[:NUM_CLIENTS]
    with ExitStack() as stack:
        first, _ = (stack.enter_context(RunnerProcess(host, host, port)) for host in hosts)
        dns = stack.enter_context(name_server(name, hosts[:1]))
        balancer = stack.enter_context(sidecar(dns.port, port, tmp_path))

        async def ask() -> None:
            async with calls_to(balancer) as calls:
                await wait_for_ready(balancer, 1)
                await calls.make_all(keys)
                assert set(calls.runners()) == {hosts[0]}
                dns.addresses = hosts
                await wait_for_ready(balancer, 2)
                await calls.make_all(keys)
                assert set(calls.runners(len(keys))) == set(hosts)
                long = asyncio.create_task(calls.make_all(keys, NUM_CLIENTS, 5.0))
                await asyncio.sleep(0.5)
                dns.addresses = hosts[1:]
                first.process.send_signal(signal.SIGTERM)
                await wait_for_ready(balancer, 1)
                await long
                assert calls.all_are_right()
                assert calls.num_repeated == 0

        asyncio.run(ask())
        assert first.process.wait(STOP_S) == 0
