"""Limits of keys in a real store, which several gateways share: here several `ApiKeys` of one
process.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from service.admission.api_keys import ApiKeys, Quota, SharedLimits, parse_keys
from service.errors import Overloaded
from service.telemetry.metrics import SHARED_LIMITS_UNANSWERED
from tests.support.api_keys import FakeClock, hash_of
from tests.support.cancellation import cancel_at_each_await
from tests.support.fake_service import until
from tests.support.valkey import Valkey, needs_valkey, running_valkey

pytestmark = needs_valkey

MEGAPIXEL = 1_000_000
PATIENT_S = 60  # the machine is shared
IMPATIENT_S = 1.0
PASSWORD = "secret-of-the-store"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def store(server: Valkey) -> Valkey:
    server.client.flushall()
    return server


@asynccontextmanager
async def gateways(
    url: str, options: str, clock: FakeClock, num: int = 2, timeout_s: float = PATIENT_S
) -> AsyncIterator[list[Quota]]:
    """Yield the quota of one key at each of several gateways."""
    shared = [SharedLimits(url, clock, timeout_s) for _ in range(num)]
    entries = parse_keys(f"{hash_of('mine')} name=batch {options}")
    try:
        keys = [ApiKeys(entries, None, clock, limits) for limits in shared]
        yield [gateway.check("Bearer mine", "192.0.2.1") for gateway in keys]
    finally:
        for limits in shared:
            await limits.close()


async def num_admitted(quotas: list[Quota], num_requests: int) -> int:
    admitted = 0
    for number in range(num_requests):
        with suppress(Overloaded):
            await quotas[number % len(quotas)].take_request()
            admitted += 1
    return admitted


async def test_gateways_share_a_minute(store: Valkey) -> None:
    # a request refills in 12 s
    async with gateways(store.url, "requests_per_minute=5", FakeClock(), 4) as quotas:
        calls = (quotas[number % 4].take_request() for number in range(100))
        results = await asyncio.gather(*calls, return_exceptions=True)
        reached = "'batch' has reached its limit of 5 requests per minute"
        with pytest.raises(Overloaded, match=reached) as caught:
            await quotas[0].take_request()
    assert results.count(None) == 5
    assert 0 < caught.value.retry_after_s <= 12
    # a changed limit applies to what is left
    async with gateways(store.url, "requests_per_minute=2", FakeClock()) as quotas:
        assert await num_admitted(quotas, 7) == 0


async def test_shared_bucket_refills(store: Valkey) -> None:
    async with gateways(store.url, "requests_per_minute=600", FakeClock()) as quotas:
        start_s = time.monotonic()
        num_first = await num_admitted(quotas, 700)
        await asyncio.sleep(0.5)
        num_later = await num_admitted(quotas, 100)
        elapsed_s = time.monotonic() - start_s
    assert num_first >= 600
    assert num_later >= 4
    assert num_first + num_later <= 600 + 10 * elapsed_s
    (name,) = store.client.keys("diptych:*:requests")
    assert float(store.client.hget(name, "level") or 0) >= 0
    assert 0 < store.client.ttl(name) <= 60


async def test_concurrent_requests_are_shared(store: Valkey) -> None:
    async with gateways(store.url, "max_concurrent=2", FakeClock()) as (first, second):
        for _ in range(3):
            leases = [await first.begin_request(60), await second.begin_request(60)]
            for quota in (first, second):
                with pytest.raises(Overloaded, match="2 concurrent requests"):
                    await quota.begin_request(60)
            await first.end_request(leases[0])
            await second.end_request(leases[1])
    assert store.client.keys("*") == []


async def test_leases_of_a_dead_gateway_expire(store: Valkey) -> None:
    async with gateways(store.url, "max_concurrent=1", FakeClock()) as (killed, other):
        start_s = time.monotonic()
        await killed.begin_request(0.1)  # and never ends it
        while True:
            try:
                lease = await other.begin_request(60)
            except Overloaded:
                await asyncio.sleep(0.05)
            else:
                break
        assert 1 < time.monotonic() - start_s < 30
        await other.end_request(lease)


async def test_cancelled_request_leaves_no_lease(store: Valkey) -> None:
    async with gateways(store.url, "max_concurrent=1", FakeClock(), 1) as (quota,):

        async def request() -> None:
            await quota.end_request(await quota.begin_request(60))

        async def no_lease() -> None:
            await until(lambda: store.client.keys("*") == [])
            # a cancelled call costs its connection: the next run has one, as this one had
            await request()

        await request()
        assert await cancel_at_each_await(request, no_lease) >= 4


async def test_short_lease_ends_no_longer_one(store: Valkey) -> None:
    async with gateways(store.url, "max_concurrent=2", FakeClock()) as (first, second):
        await first.begin_request(600)
        await second.begin_request(0.1)
        (leases,) = store.client.keys("*")
        assert 500 < store.client.ttl(leases) <= 603


def unanswered() -> float:
    return float(SHARED_LIMITS_UNANSWERED._value.get())


async def use_without(first: Quota, second: Quota, clock: FakeClock) -> None:
    before = unanswered()
    start_s = time.monotonic()
    assert await num_admitted([first], 10) == 6
    assert await num_admitted([second], 20) == 10
    with pytest.raises(Overloaded, match="1 concurrent requests"):
        await first.begin_request(60)
    await second.end_request(await second.begin_request(60))
    await second.take_pixels(MEGAPIXEL)
    with pytest.raises(Overloaded, match="1 megapixels per minute"):
        await second.take_pixels(MEGAPIXEL)
    assert unanswered() - before == 34
    # each gateway waits once for a second, the rest does not
    assert time.monotonic() - start_s < 15  # 34 s if all waited
    clock.now_s += 1.1
    with suppress(Overloaded):
        await first.take_request()


@pytest.mark.parametrize("is_hanging", [False, True], ids=["killed", "hanging"])
def test_process_limits_without_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_hanging: bool
) -> None:
    """One attempt a second waits; what the process had admitted before counts on."""
    caplog.set_level(logging.INFO, "service.admission.api_keys")

    async def send(store: Valkey) -> None:
        clock = FakeClock()
        options = "requests_per_minute=10 max_concurrent=1 megapixels_per_minute=1"
        async with gateways(store.url, options, clock, timeout_s=IMPATIENT_S) as (first, second):
            await first.begin_request(60)
            assert await num_admitted([first], 4) == 4
            if is_hanging:
                with store.hanging():
                    await use_without(first, second, clock)
            else:
                store.kill()
                await use_without(first, second, clock)
                store.start()
            clock.now_s += 1.1
            before = unanswered()
            await second.take_pixels(1)
            assert unanswered() == before

    with running_valkey(tmp_path) as running:
        asyncio.run(send(running))
    failures = [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR]
    assert len(failures) == 2  # one for each gateway
    reason = rf"(.*127\.0\.0\.1.*|no answer within {IMPATIENT_S:g} s)"
    message = f"the store of the shared limits fails: {reason}; each process applies its own limits"
    assert all(re.fullmatch(message, failure) for failure in failures), failures
    assert "the store of the shared limits answers again" in caplog.messages


async def test_refusing_store_logs_no_password(
    store: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    url = store.url.replace("//", f"//somebody:{PASSWORD}@")
    async with gateways(url, "requests_per_minute=2", FakeClock()) as quotas:
        assert await num_admitted(quotas, 10) == 4
    assert len(caplog.messages) == 2
    assert PASSWORD not in caplog.text


async def test_restarted_store_is_used_at_once(store: Valkey) -> None:
    """Its scripts and the connections to it are gone; no request notices."""

    async with gateways(store.url, "requests_per_minute=10", FakeClock()) as quotas:
        assert await num_admitted(quotas, 3) == 3
        before = unanswered()
        store.kill()
        store.start()
        assert await num_admitted(quotas, 20) == 10
        assert unanswered() == before


async def test_late_loop_is_no_failure(store: Valkey) -> None:
    """When the time is over, the answer lies in the socket, wherever the loop was blocked."""
    timeout_s = 0.5

    loop = asyncio.get_running_loop()

    def block_after(num_turns: int) -> None:
        if num_turns:
            loop.call_soon(block_after, num_turns - 1)
        else:
            time.sleep(1.2 * timeout_s)

    options = "requests_per_minute=10"
    async with gateways(store.url, options, FakeClock(), 1, timeout_s) as (quota,):
        before = unanswered()
        for num_turns in range(4):
            loop.call_soon(block_after, num_turns)
            assert await num_admitted([quota], 1) == 1
        assert unanswered() == before
