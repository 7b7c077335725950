import asyncio

import pytest

from service.admission.drain_gate import DrainGate
from service.errors import NotReady
from tests.support.fake_service import make_core
from tests.support.rest_client import OCR, client, error_of


def test_closing_waits_for_those_inside_and_for_nobody_else() -> None:
    async def closed_after_last() -> list[str]:
        entrance, order, leave = DrainGate(), list[str](), asyncio.Event()

        async def be_inside() -> None:
            with entrance.inside():
                await leave.wait()
            order.append("left")

        inside = [asyncio.create_task(be_inside()) for _ in range(2)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(entrance.close())
        await asyncio.sleep(0)
        assert not closing.done()
        leave.set()
        await closing
        order.append("closed")
        await asyncio.gather(*inside)
        return order

    assert asyncio.run(closed_after_last()) == ["left", "left", "closed"]


def test_an_empty_one_closes_at_once_and_as_often_as_it_is_told() -> None:
    async def close_twice() -> None:
        entrance = DrainGate()
        entrance.check()
        async with asyncio.timeout(10):
            await asyncio.gather(entrance.close(), entrance.close())
        with pytest.raises(NotReady, match="stopping"):
            entrance.check()

    asyncio.run(close_twice())


@pytest.mark.parametrize("path", ["/v1/models", "/v1/tasks", "/docs", "/v2/health/ready"])
def test_a_closed_service_refuses_and_closes_the_connection(path: str) -> None:
    core = make_core()
    asyncio.run(core.drain_gate.close())
    response = client(core).get(path)
    assert (response.status_code, response.headers["connection"]) == (503, "close")


def test_a_closed_service_says_so_to_who_asks() -> None:
    core = make_core()
    open_answer = client(core).predict(OCR)
    assert "connection" not in open_answer.headers
    asyncio.run(core.drain_gate.close())
    assert error_of(client(core).predict(OCR))["code"] == "not_ready"
