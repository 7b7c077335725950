import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import pytest

from service.errors import InvalidRequest, NotReady
from service.host_addresses import Resolver
from service.replicated_runner import PartName, ReplicatedRunner
from service.runner_addresses import RunnerAddresses, RunnerUrl
from service.runner_apis import RunnerLink
from service.shared_memory import SharedMemory
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeEncoder, refusal
from tests.support.fake_service import MEMORY

A, B, C = "http://10.0.0.1:3000", "http://10.0.0.2:3000", "http://10.0.0.3:3000"
GONE = aiohttp.ServerDisconnectedError()
Link = RunnerLink[FakeEncoder]


class Names:
    """Resolves every name to the addresses that the test set."""

    def __init__(self, *addresses: str) -> None:
        self.addresses_now: Sequence[str] | None = addresses  # None: it cannot

    async def addresses(self, host: str) -> Sequence[str]:
        if self.addresses_now is None:
            raise OSError(f"{host} is unknown")
        return self.addresses_now


class Stand:
    """Fake encoders at addresses, and the runner of all of them."""

    def __init__(self, *urls: str, names: Resolver | None, memory: SharedMemory | None) -> None:
        self.apis: dict[str, FakeEncoder] = {}
        self.asked: list[str] = []
        self.memory = memory
        given = [RunnerUrl.parse(f"a-model={url}") for url in urls]
        self.runner = ReplicatedRunner(
            PartName("a-model", "encoder"), RunnerAddresses(given, names or Names()), self._link
        )

    def _link(self, url: str) -> Link:
        self.apis[url] = FakeEncoder()
        return RunnerLink(url, self.apis[url], self.memory)

    def call(self, fails: dict[str, Exception] | None = None) -> Callable[[Link], Awaitable[str]]:
        """Return a call that answers with the URL that it was made to, or fails there once."""
        fails = dict(fails or {})

        async def call(link: Link) -> str:
            self.asked.append(link.name)
            if link.name in fails:
                raise fails[link.name]
            return link.name

        return call


def started(
    work: Callable[[Stand], Awaitable[Any]],
    *urls: str,
    names: Resolver | None = None,
    memory: SharedMemory | None = None,
) -> Stand:
    """Run `work` with a runner that has found and probed its replicas."""
    stand = Stand(*urls, names=names, memory=memory)

    async def all_of_it() -> None:
        await stand.runner.start()
        await work(stand)
        await stand.runner.stop()

    run(all_of_it())
    return stand


@pytest.mark.parametrize(
    "error",
    [
        GONE,
        aiohttp.ClientOSError(),
        aiohttp.ClientPayloadError(),
        aiohttp.ConnectionTimeoutError(),
        refusal(503),
        refusal(409),
    ],
    ids=repr,
)
def test_a_call_that_did_not_reach_a_replica_is_answered_by_another_which_is_asked_from_then_on(
    error: Exception,
) -> None:
    async def ask(stand: Stand) -> None:
        assert await stand.runner.ask(stand.call({A: error}), 1) == B
        assert stand.runner.num_replicas == 1
        assert {await stand.runner.ask(stand.call(), 1) for _ in range(3)} == {B}

    assert started(ask, A, B).asked[:2] == [A, B]


@pytest.mark.parametrize("error", [refusal(500), InvalidRequest("too long"), TimeoutError()], ids=repr)
def test_what_a_replica_answers_is_told_and_not_asked_again(error: Exception) -> None:
    async def ask(stand: Stand) -> None:
        with pytest.raises(type(error)):
            await stand.runner.ask(stand.call({A: error}), 1)
        assert stand.runner.num_replicas == 2

    assert started(ask, A, B).asked == [A]


def test_a_call_is_made_twice_at_most() -> None:
    async def ask(stand: Stand) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await stand.runner.ask(stand.call({A: GONE, B: GONE, C: GONE}), 1)
        assert await stand.runner.ask(stand.call(), 1) == C

    assert started(ask, A, B, C).asked == [A, B, C]


def test_where_none_is_healthy_one_is_tried_and_its_error_is_told() -> None:
    async def ask(stand: Stand) -> None:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await stand.runner.ask(stand.call({A: GONE}), 1)
        assert not await stand.runner.is_ready()
        assert await stand.runner.ask(stand.call(), 1) == A

    assert started(ask, A).asked == [A, A, A]


async def held(stand: Stand, cost: int) -> tuple[asyncio.Task[str], asyncio.Event]:
    """Return a call of `cost` that is under way, and what ends it."""
    released = asyncio.Event()

    async def slow(link: Link) -> str:
        await released.wait()
        return link.name

    waiting = asyncio.create_task(stand.runner.ask(slow, cost))
    await asyncio.sleep(0)
    return waiting, released


def test_outstanding_work_counts_until_its_call_has_ended() -> None:
    async def ask(stand: Stand) -> None:
        waiting, _ = await held(stand, 3)
        assert [await stand.runner.ask(stand.call(), 1) for _ in range(3)] == [B, B, B]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await stand.runner.ask(stand.call(), 1) == A

    started(ask, A, B)


def test_one_key_is_asked_of_one_replica() -> None:
    async def ask(stand: Stand) -> None:
        asked = {key: {await stand.runner.ask(stand.call(), 1, b"%d" % key) for _ in range(3)} for key in range(20)}
        assert all(len(addresses) == 1 for addresses in asked.values())
        assert set.union(*asked.values()) == {A, B, C}

    started(ask, A, B, C)


def test_probes_eject_a_replica_that_is_not_ready_and_let_it_in_again() -> None:
    async def ask(stand: Stand) -> None:
        stand.apis[A].is_up = False
        for expected in (2, 1):
            await stand.runner.probe()
            assert stand.runner.num_replicas == expected
        assert await stand.runner.ask(stand.call(), 1) == B
        stand.apis[A].is_up = True
        await stand.runner.probe()
        assert stand.runner.num_replicas == 2

    started(ask, A, B)


@pytest.mark.parametrize("failure", [aiohttp.ClientConnectionError("refused"), TimeoutError()], ids=repr)
def test_a_probe_that_finds_nobody_is_one_that_is_not_ready(failure: Exception) -> None:
    async def ask(stand: Stand) -> None:
        stand.apis[A].failure = failure
        await stand.runner.probe()
        await stand.runner.probe()
        assert not await stand.runner.is_ready()

    started(ask, A)


def test_every_address_of_a_name_is_a_replica_as_long_as_it_is_one() -> None:
    async def ask(stand: Stand) -> None:
        assert stand.runner.num_replicas == 2
        names.addresses_now = ["10.0.0.2", "10.0.0.3"]
        await stand.runner.find()
        assert stand.runner.num_replicas == 1  # nobody has asked the new one yet
        assert await stand.runner.ask(stand.call(), 1) == B
        await stand.runner.probe()
        assert {await stand.runner.ask(stand.call(), 1) for _ in range(4)} == {B, C}
        names.addresses_now = None
        await stand.runner.find()
        assert stand.runner.num_replicas == 2

    names = Names("10.0.0.1", "10.0.0.2")
    stand = started(ask, "http://encoders:3000", names=names)
    assert stand.apis[A].is_closed


def test_a_replica_that_is_gone_ends_what_it_has_and_is_then_closed() -> None:
    async def ask(stand: Stand) -> None:
        waiting, released = await held(stand, 1)
        names.addresses_now = ["10.0.0.2"]
        await stand.runner.find()
        assert not stand.apis[A].is_closed
        released.set()
        assert await waiting == A
        await until(lambda: stand.apis[A].is_closed)

    names = Names("10.0.0.1")
    started(ask, "http://encoders:3000", names=names)


def test_a_name_without_addresses_is_not_ready_and_says_so() -> None:
    async def ask(stand: Stand) -> None:
        assert not await stand.runner.is_ready()
        assert stand.runner.num_replicas == 1
        with pytest.raises(NotReady, match="no encoder of a-model has an address now"):
            await stand.runner.ask(stand.call(), 1)

    names = Names()
    names.addresses_now = None
    started(ask, "http://encoders:3000", names=names)


def test_one_that_was_out_is_asked_anew_whether_it_shares_memory() -> None:
    async def ask(stand: Stand) -> None:
        async def shares(link: Link) -> bool:
            return await link.shared_memory() is not None

        assert [await stand.runner.ask(shares, 1) for _ in range(2)] == [True, True]
        stand.apis[A].is_up = stand.apis[A].shares_memory = False
        await stand.runner.probe()
        await stand.runner.probe()
        assert not await stand.runner.ask(shares, 1)
        assert stand.apis[A].num_asked == 2

    started(ask, A, memory=MEMORY)
