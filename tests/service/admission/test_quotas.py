from asyncio import run
from typing import cast

import pytest

from service.admission.api_keys import UNLIMITED, Quota, QuotaLimits, TokenBucket
from service.admission.shared_limits import SharedQuota
from service.errors import ImageTooLarge, InvalidRequest, Overloaded
from tests.support.api_keys import FakeClock

MEGAPIXEL = 1_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_bucket_refills_evenly(clock: FakeClock) -> None:
    bucket = TokenBucket(60, clock)
    assert [bucket.take(1) for _ in range(60)] == [0] * 60
    assert bucket.take(1) == pytest.approx(1)
    clock.now_s += 0.5
    assert bucket.take(1) == pytest.approx(0.5)
    clock.now_s += 0.5
    assert bucket.take(1) == 0
    clock.now_s += 3600
    assert bucket.take(60) == 0
    assert bucket.take(0.001) > 0


def test_requests_above_the_rate(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(requests_per_minute=2), clock)
    run(quota.take_request())
    run(quota.take_request())
    with pytest.raises(
        Overloaded,
        match="the key 'batch' has reached its limit of 2 requests per minute; retry after 30 s",
    ) as caught:
        run(quota.take_request())
    assert caught.value.retry_after_s == 30
    clock.now_s += 30
    run(quota.take_request())


def test_requests_of_a_minute_at_once(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(requests_per_minute=2), clock)
    run(quota.take_request(2))
    with pytest.raises(InvalidRequest, match="its tiles count as 3 requests"):
        run(quota.take_request(3))


def test_megapixels_above_the_rate(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(megapixels_per_minute=6), clock)
    run(quota.take_pixels(5 * MEGAPIXEL))
    with pytest.raises(Overloaded, match="6 megapixels per minute; retry after 20 s") as caught:
        run(quota.take_pixels(3 * MEGAPIXEL))
    assert caught.value.retry_after_s == 20
    run(quota.take_pixels(MEGAPIXEL))
    clock.now_s += 30
    run(quota.take_pixels(3 * MEGAPIXEL))


def test_image_above_the_minute(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(megapixels_per_minute=6), clock)
    with pytest.raises(
        ImageTooLarge, match=r"has 6\.5 megapixels; the key 'batch' may send 6 per minute"
    ) as caught:
        run(quota.take_pixels(6_500_000))
    assert caught.value.param == "image"


def test_concurrent_requests_of_a_quota(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(max_concurrent=2), clock)
    for _ in range(3):
        run(quota.begin_request(60))
        run(quota.begin_request(60))
        with pytest.raises(Overloaded, match="2 concurrent requests") as caught:
            run(quota.begin_request(60))
        run(quota.end_request(""))
        run(quota.end_request(""))
        assert caught.value.retry_after_s == 1


class Store:
    """A store whose answer to the next lease is `answer`; None while there is no store."""

    answer: bool | None = True

    # the interface has it
    async def lease(self, max_leases: int, lease: str, seconds: float) -> bool | None:  # noqa: ARG002
        return self.answer


def test_refusal_of_the_store_counts_nothing(clock: FakeClock) -> None:
    store = Store()
    quota = Quota("batch", QuotaLimits(max_concurrent=2), clock, cast(SharedQuota, store))
    run(quota.begin_request(60))
    store.answer = False
    for _ in range(3):
        with pytest.raises(Overloaded):
            run(quota.begin_request(60))
    store.answer = None
    run(quota.begin_request(60))
    with pytest.raises(Overloaded):
        run(quota.begin_request(60))


def test_unlimited_quota_has_no_limits() -> None:
    for _ in range(1000):
        run(UNLIMITED.take_request())
        run(UNLIMITED.take_pixels(1000 * MEGAPIXEL))
