"""Work is cancelled with its client or its caller, and leaves no task."""

import asyncio
from collections.abc import Callable

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


async def assert_no_task_is_left() -> None:
    await asyncio.sleep(0)  # lets cancelled tasks end
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_result_of_work() -> None:
    call = Call()
    call.messages.append({"type": "http.request", "body": b"", "more_body": False})
    task = await call.started()
    call.released.set()
    assert await task == "done"
    call.gone.set()  # a result that is ready is returned despite the disconnection
    assert await while_connected(call.receive, call.work()) == "done"
    await assert_no_task_is_left()


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda call, _: call.gone.set(), ClientDisconnect),
        (lambda _, task: task.cancel(), asyncio.CancelledError),
    ],
    ids=["disconnected", "cancelled"],
)
async def test_work_is_cancelled(
    end: Callable[[Call, "asyncio.Task[str]"], object], error: type[BaseException]
) -> None:
    call = Call()
    task = await call.started()
    end(call, task)
    with pytest.raises(error):
        await task
    assert call.is_cancelled
    await assert_no_task_is_left()


async def raising(error: BaseException) -> Message:
    raise error


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
async def test_errors_reach_the_caller(error: BaseException) -> None:
    call = Call()
    with pytest.raises(type(error)):
        await while_connected(call.receive, raising(error))
    with pytest.raises(ValueError, match="broken"):
        await while_connected(lambda: raising(ValueError("broken")), call.work())
