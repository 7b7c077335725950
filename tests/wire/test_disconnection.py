"""Work is cancelled with its client or its caller, and leaves no task."""

import asyncio
from collections.abc import Awaitable

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from wire.disconnection import while_connected


class Call:
    """A client that disconnects once `gone` is set, and work that ends once `released` is."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.gone = asyncio.Event()
        self.released = asyncio.Event()
        self.is_cancelled = False

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def work(self) -> str:
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        return "done"

    async def started(self) -> "asyncio.Task[str]":
        task = asyncio.ensure_future(while_connected(self.receive, self.work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task


@pytest.fixture
def call() -> Call:
    return Call()


async def assert_no_task_is_left() -> None:
    await asyncio.sleep(0)  # lets cancelled tasks end
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_result_of_work(call: Call) -> None:
    call.messages.append({"type": "http.request", "body": b"", "more_body": False})
    task = await call.started()
    call.released.set()
    assert await task == "done"
    call.gone.set()  # a result that is ready is returned despite the disconnection
    assert await while_connected(call.receive, call.work()) == "done"
    await assert_no_task_is_left()


async def test_caller_goes_on_after_the_result(call: Call) -> None:
    asyncio.get_running_loop().call_later(0.01, call.released.set)
    assert await while_connected(call.receive, call.work()) == "done"
    await assert_no_task_is_left()


async def test_disconnection_cancels_work(call: Call) -> None:
    task = await call.started()
    call.gone.set()
    with pytest.raises(ClientDisconnect):
        await task
    assert call.is_cancelled
    await assert_no_task_is_left()


async def test_cancelled_caller_cancels_work(call: Call) -> None:
    task = await call.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.is_cancelled
    await assert_no_task_is_left()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_caller_is_as_cancelled_as_before(call: Call, is_cancelled: bool) -> None:
    async def answer() -> int:
        with pytest.raises(ClientDisconnect):
            await while_connected(call.receive, call.work())
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(answer())
    await asyncio.sleep(0.01)
    call.gone.set()
    await asyncio.sleep(0)  # the disconnection is noticed in the next turn
    if not is_cancelled:
        assert await task == 0
        return
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def raising(error: BaseException) -> Message:
    raise error


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
async def test_error_of_work(call: Call, error: BaseException) -> None:
    failing: Awaitable[object] = raising(error)
    with pytest.raises(type(error)):
        await while_connected(call.receive, failing)


async def test_error_of_receive_cancels_work(call: Call) -> None:
    with pytest.raises(ValueError, match="broken"):
        await while_connected(lambda: raising(ValueError("broken")), call.work())
