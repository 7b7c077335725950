"""Requests in flight are counted once, for all limits, until they leave."""

import asyncio

import pytest

from service.admission.api_keys import Quota, QuotaLimits
from service.admission.places import Places
from service.errors import Overloaded
from tests.support.fake_service import context, make_core
from tests.support.rest_client import OCR, client, error_of


async def test_drain_waits_for_the_last_request() -> None:
    places = Places(8, 100)
    first = context()
    second = context()
    places.take(first)
    places.take(second)
    closing = [asyncio.create_task(places.close()) for _ in range(2)]
    for leaving in (first, second):
        await asyncio.sleep(0)
        assert not any(task.done() for task in closing)
        places.leave(leaving)
    async with asyncio.timeout(10):
        await asyncio.gather(*closing, places.close())
    assert places.is_closed


async def test_place_is_taken_and_left_once() -> None:
    places = Places(1, 100)
    request = context()
    for _ in range(2):
        places.take(request)
        places.take(request)
        places.hold(request, 60)
        assert places.num_bytes == 60
        places.leave(request)
        places.leave(request)
    assert places.num_bytes == 0


async def test_refused_request_holds_no_place() -> None:
    """Whether the service or its key refuses it."""

    places = Places(2, 100)
    quota = Quota("one", QuotaLimits(max_concurrent=1))
    first, refused = (context(quota=quota) for _ in range(2))
    places.take(first)
    with pytest.raises(Overloaded, match="limit of 1 concurrent requests"):
        places.take(refused)
    assert not refused.place.is_taken
    places.take(context())  # half of the limit, as of two clients
    with pytest.raises(Overloaded, match="requests in flight or queued"):
        places.take(context())
    places.leave(first)
    places.take(refused)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/tasks", "/docs"])
def test_drain_closes_connections(path: str) -> None:
    core = make_core()
    asyncio.run(core.places.close())
    response = client(core).get(path)
    assert (response.status_code, response.headers["connection"]) == (503, "close")


def test_draining_service_is_not_ready() -> None:
    core = make_core()
    assert "connection" not in client(core).predict(OCR).headers
    asyncio.run(core.places.close())
    assert error_of(client(core).predict(OCR))["code"] == "not_ready"
