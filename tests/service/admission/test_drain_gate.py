import asyncio

import pytest

from service.admission.load import DrainGate
from service.errors import NotReady
from tests.support.fake_service import make_core
from tests.support.rest_client import OCR, client, error_of


def test_close_waits_for_requests_in_flight() -> None:
    async def closed_after_last() -> list[str]:
        gate = DrainGate()
        order = list[str]()
        release = asyncio.Event()

        async def handle_request() -> None:
            with gate.inside():
                await release.wait()
            order.append("left")

        inside = [asyncio.create_task(handle_request()) for _ in range(2)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(gate.close())
        await asyncio.sleep(0)
        assert not closing.done()
        release.set()
        await closing
        order.append("closed")
        await asyncio.gather(*inside)
        return order

    assert asyncio.run(closed_after_last()) == ["left", "left", "closed"]


def test_close_without_requests_returns_at_once_and_may_be_repeated() -> None:
    async def close_twice() -> None:
        gate = DrainGate()
        gate.check()
        async with asyncio.timeout(10):
            await asyncio.gather(gate.close(), gate.close())
        with pytest.raises(NotReady, match="shutting down"):
            gate.check()

    asyncio.run(close_twice())


@pytest.mark.parametrize("path", ["/v1/models", "/v1/tasks", "/docs", "/v2/health/ready"])
def test_draining_service_answers_503_and_closes_the_connection(path: str) -> None:
    core = make_core()
    asyncio.run(core.drain_gate.close())
    response = client(core).get(path)
    assert (response.status_code, response.headers["connection"]) == (503, "close")


def test_draining_service_answers_not_ready() -> None:
    core = make_core()
    open_answer = client(core).predict(OCR)
    assert "connection" not in open_answer.headers
    asyncio.run(core.drain_gate.close())
    assert error_of(client(core).predict(OCR))["code"] == "not_ready"
