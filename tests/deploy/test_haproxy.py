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
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.deploy.name_server import NameServer, name_server
from tests.deploy.runner_process import STOP_S, RunnerProcess, small_runners
from tests.deploy.small_calls import KEY, PIXELS, Calls, image_key
from tests.deploy.small_runner import CACHE_SIZE
from tests.support.export_cli import ROOT
from tests.support.haproxy import (
    CONFIGURATION,
    MODELS,
    HaProxy,
    haproxy,
    needs_haproxy,
    running_haproxy,
)
from tests.support.running_service import free_port
from tests.support.waiting import wait_until

pytestmark = needs_haproxy

MODEL = "florence-2-mini"
DOMAIN = "diptych.svc.cluster.local"
NUM_CLIENTS = 16
CALL_S = 0.03


@pytest.fixture
def runners() -> Iterator[list[RunnerProcess]]:
    with small_runners("a", "b") as started:
        yield started


@pytest.fixture
def balancer(runners: list[RunnerProcess], tmp_path: Path) -> Iterator[HaProxy]:
    with haproxy({MODEL: [runner.url for runner in runners]}, tmp_path) as running:
        yield running


@asynccontextmanager
async def calls_to(url: str) -> AsyncIterator[Calls]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Calls(session, url)


def test_haproxy_takes_every_configuration_without_a_warning(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"```haproxy\n(.*?)```",
        (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    (tmp_path / "hosts.cfg").write_text(example)
    for models in (MODELS, tmp_path / "hosts.cfg"):
        command = ["haproxy", "-c", "-f", str(CONFIGURATION), "-f", str(models)]
        variables = os.environ | {"RUNNERS_DOMAIN": DOMAIN}
        run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_an_image_stays_with_one_runner_and_both_have_some(balancer: HaProxy) -> None:
    async def ask() -> None:
        async with calls_to(balancer.url(MODEL)) as calls:
            keys = [image_key(number) for number in range(CACHE_SIZE)]
            await calls.make_all(keys, 1)
            assert calls.hit_share() == 0
            await calls.make_all(keys, 1)
            first = calls.done[: len(keys)]
            second = calls.done[len(keys) :]
            assert calls.hit_share() == 0.5
            assert [call.answer and call.answer.runner for call in first] == [
                call.answer and call.answer.runner for call in second
            ]
            assert min(calls.by_runner().values()) > len(keys) / 4

    asyncio.run(ask())


def test_calls_about_one_image_are_shared_once_a_runner_has_more_than_its_part(
    balancer: HaProxy,
) -> None:
    async def ask() -> None:
        async with calls_to(balancer.url(MODEL)) as calls:
            await calls.make_all([image_key(1)] * 200, NUM_CLIENTS, CALL_S)
            assert not [call for call in calls.done if not call.is_right]
            most, least = sorted(calls.by_runner().values(), reverse=True)
            assert most >= least > 0

    asyncio.run(ask())


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_nothing_is_lost_with_a_runner(
    balancer: HaProxy, runners: list[RunnerProcess], kill: signal.Signals
) -> None:
    drawn = random.Random(2)
    keys = (image_key(drawn.randrange(CACHE_SIZE)) for _ in itertools.count())

    async def ask() -> None:
        async with calls_to(balancer.url(MODEL)) as calls:
            async with calls.under_load(keys, NUM_CLIENTS, CALL_S):
                await calls.wait_for_more(10 * NUM_CLIENTS)
                assert len(calls.by_runner()) == 2
                runners[0].process.send_signal(kill)
                await wait_for_ready(balancer, 1)
                start = len(calls.done)
                interrupted = set(calls.in_flight)
                await calls.wait_for_more(10 * NUM_CLIENTS)
                assert set(calls.by_runner(start + NUM_CLIENTS)) == {"b"}
                async with asyncio.timeout(60):  # none hangs at the other
                    while interrupted & calls.in_flight:
                        await asyncio.sleep(0.05)
                runners[0].bring_back(kill)
                await wait_for_ready(balancer, 2)
                start = len(calls.done)
                await calls.wait_for_more(10 * NUM_CLIENTS)
                assert set(calls.by_runner(start)) == {"a", "b"}
            assert not [call for call in calls.done if not call.is_right]

    asyncio.run(ask())


async def wait_for_ready(balancer: HaProxy, count: int) -> None:
    async with asyncio.timeout(60):
        while await asyncio.to_thread(balancer.num_ready, MODEL) != count:
            await asyncio.sleep(0.05)


def test_a_refused_connection_is_repeated_at_another_runner(
    balancer: HaProxy, runners: list[RunnerProcess]
) -> None:
    async def ask(session: aiohttp.ClientSession, number: int) -> int | None:
        try:
            async with session.post(
                f"{balancer.url(MODEL)}/write", headers={KEY: image_key(number)}
            ) as response:
                return response.status
        except aiohttp.ServerDisconnectedError:
            return None

    async def ask_all() -> Counter[int | None]:
        async with aiohttp.ClientSession() as session:
            return Counter([await ask(session, number) for number in range(CACHE_SIZE)])

    runners[0].stop()
    statuses = asyncio.run(ask_all())
    assert set(statuses) <= {404, None}  # no pixels were sent
    assert statuses[None] <= 1  # the call that is being repeated while its runner is marked down


def test_a_draining_runner_finishes_its_calls_and_gets_no_new_ones(
    balancer: HaProxy, runners: list[RunnerProcess]
) -> None:
    async def ask() -> None:
        async with calls_to(balancer.url(MODEL)) as calls:
            keys = [image_key(number) for number in range(NUM_CLIENTS)]
            await calls.make_all(keys, 1)
            named = [call.answer.runner for call in calls.done if call.answer is not None]
            long = asyncio.create_task(calls.make_all(keys, NUM_CLIENTS, 4.0))
            await asyncio.sleep(0.5)
            runners[0].process.send_signal(signal.SIGTERM)
            await wait_for_ready(balancer, 1)
            new = [await calls.make(image_key(number)) for number in range(100, 120)]
            assert {call.answer and call.answer.runner for call in new} == {"b"}
            await long
            finished = {call.key: call.answer for call in calls.done[-NUM_CLIENTS:]}
            assert not [call for call in calls.done if not call.is_right]
            assert calls.num_repeated == 0
            assert "a" in {
                answer.runner for answer in finished.values() if answer is not None
            } & set(named)

    asyncio.run(ask())
    assert runners[0].process.wait(STOP_S) == 0


@pytest.mark.parametrize("path", ["/write", "/stream"])
def test_a_client_that_disconnects_ends_its_call_at_the_runner(
    balancer: HaProxy, path: str, tmp_path: Path
) -> None:
    aborted = tmp_path / "aborted"

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            headers = {KEY: image_key(1), "X-Seconds": "60", "X-Abort-File": str(aborted)}
            with pytest.raises(TimeoutError):
                async with (
                    asyncio.timeout(0.5),
                    session.post(balancer.url(MODEL) + path, data=PIXELS, headers=headers),
                ):
                    await asyncio.sleep(60)

    asyncio.run(ask())
    wait_until(lambda: aborted.exists() and aborted.read_text() == f"{path}\n")


def test_a_stream_comes_line_by_line(balancer: HaProxy) -> None:
    async def ask() -> list[float]:
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession() as session:
            headers = {KEY: image_key(1), "X-Seconds": "2"}
            async with session.post(
                f"{balancer.url(MODEL)}/stream", data=PIXELS, headers=headers
            ) as response:
                return [loop.time() async for _ in response.content]

    times_s = asyncio.run(ask())
    assert len(times_s) == 10
    assert times_s[-1] - times_s[0] > 0.1  # buffered lines come together


def test_without_any_runner_a_call_fails_at_once(
    balancer: HaProxy, runners: list[RunnerProcess]
) -> None:
    for runner in runners:
        runner.stop()

    async def ask() -> None:
        await wait_for_ready(balancer, 0)
        async with calls_to(balancer.url(MODEL)) as calls:
            call = await calls.make(image_key(1))
            assert call.answer is None

    asyncio.run(ask())


@pytest.fixture
def pods() -> Iterator[list[RunnerProcess]]:
    """Two runners with the port of all pods, each on a separate address."""
    with ExitStack() as stack:
        port = free_port()
        yield [
            stack.enter_context(RunnerProcess(host, host, port))
            for host in ("127.0.0.2", "127.0.0.3")
        ]


@pytest.fixture
def cluster_dns(pods: list[RunnerProcess]) -> Iterator[NameServer]:
    with name_server(f"{MODEL}-runner.{DOMAIN}", [pods[0].host]) as server:
        yield server


@pytest.fixture
def sidecar(
    pods: list[RunnerProcess], cluster_dns: NameServer, tmp_path: Path
) -> Iterator[HaProxy]:
    """HAProxy with models.cfg, but for the ports and the address of the name server."""
    shipped = MODELS.read_text(encoding="utf-8")
    ports = {
        model_id: free_port() for model_id in re.findall(r"^listen (\S+)$", shipped, re.MULTILINE)
    }
    bound = iter(ports.values())
    models = re.sub(r"(?<=bind 127\.0\.0\.1:)\d+", lambda _: str(next(bound)), shipped)
    models = models.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{cluster_dns.port}")
    models = models.replace(':3000"', f':{pods[0].port}"')
    with running_haproxy(models, ports, tmp_path, {"RUNNERS_DOMAIN": DOMAIN}) as running:
        yield running


def test_pods_come_and_go_with_dns_and_a_deleted_one_finishes_its_calls(
    sidecar: HaProxy, cluster_dns: NameServer, pods: list[RunnerProcess]
) -> None:
    async def ask() -> None:
        async with calls_to(sidecar.url(MODEL)) as calls:
            keys = [image_key(number) for number in range(NUM_CLIENTS)]
            await wait_for_ready(sidecar, 1)
            await calls.make_all(keys, 1)
            assert set(calls.by_runner()) == {pods[0].host}
            cluster_dns.addresses = [pod.host for pod in pods]
            await wait_for_ready(sidecar, 2)
            start = len(calls.done)
            await calls.make_all(keys, 1)
            assert set(calls.by_runner(start)) == {pod.host for pod in pods}
            long = asyncio.create_task(calls.make_all(keys, NUM_CLIENTS, 5.0))
            await asyncio.sleep(0.5)
            cluster_dns.addresses = [pods[1].host]
            pods[0].process.send_signal(signal.SIGTERM)
            await wait_for_ready(sidecar, 1)
            await long
            assert not [call for call in calls.done if not call.is_right]
            assert calls.num_repeated == 0

    asyncio.run(ask())
    assert pods[0].process.wait(STOP_S) == 0
