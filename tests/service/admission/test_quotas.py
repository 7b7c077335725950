from contextlib import ExitStack

import pytest

from service.admission.quotas import UNLIMITED, Quota, QuotaLimits, TokenBucket
from service.errors import ImageTooLarge, Overloaded
from tests.support.api_keys import FakeClock

MEGAPIXEL = 1_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_bucket_holds_one_minute_and_refills_evenly(clock: FakeClock) -> None:
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


def test_what_a_full_bucket_does_not_hold_is_never_there(clock: FakeClock) -> None:
    bucket = TokenBucket(10, clock)
    assert bucket.take(10.5) == float("inf")
    assert bucket.take(10) == 0


def test_requests_of_a_minute_run_out_and_the_wait_is_told(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(requests_per_minute=2), clock)
    quota.take_request()
    quota.take_request()
    with pytest.raises(Overloaded, match="the key 'batch' may ask for 2 requests a minute") as caught:
        quota.take_request()
    assert caught.value.retry_after_s == 30
    clock.now_s += 30
    quota.take_request()


def test_pixels_of_a_minute_run_out_and_the_wait_is_told(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(megapixels_per_minute=6), clock)
    quota.take_pixels(5 * MEGAPIXEL)
    with pytest.raises(Overloaded, match="6 megapixels of images a minute") as caught:
        quota.take_pixels(3 * MEGAPIXEL)
    assert caught.value.retry_after_s == 20
    quota.take_pixels(MEGAPIXEL)
    clock.now_s += 30
    quota.take_pixels(3 * MEGAPIXEL)


def test_an_image_that_no_minute_holds_is_too_large(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(megapixels_per_minute=6), clock)
    with pytest.raises(ImageTooLarge, match=r"has 6\.5 megapixels; the key 'batch' may send 6 a minute") as caught:
        quota.take_pixels(6_500_000)
    assert caught.value.param == "image"


def test_requests_at_one_time_are_bounded_and_their_places_come_back(clock: FakeClock) -> None:
    quota = Quota("batch", QuotaLimits(max_concurrent=2), clock)
    for _ in range(3):
        with ExitStack() as places:
            for _ in range(2):
                places.enter_context(quota.concurrent_request())
            with pytest.raises(Overloaded, match="2 requests at one time") as caught:
                places.enter_context(quota.concurrent_request())
        assert caught.value.retry_after_s == 1


def test_anyone_has_no_limits() -> None:
    for _ in range(1000):
        UNLIMITED.take_request()
        UNLIMITED.take_pixels(1000 * MEGAPIXEL)
