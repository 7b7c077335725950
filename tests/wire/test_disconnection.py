import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from wire.disconnection import while_connected


@dataclass(slots=True)
class Client:
    """Sends its messages; disconnects once `gone` is set."""

    messages: list[Message] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}


@dataclass(slots=True)
class Work:
    """Ends when `released` is set; records a cancellation."""

    released: asyncio.Event = field(default_factory=asyncio.Event)
    is_cancelled: bool = False

    async def __call__(self) -> str:
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        return "done"


Scenario = Callable[[Client, Work], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    """Run a scenario and check that no task remains."""

    async def checked() -> None:
        await scenario(Client(), Work())
        await asyncio.sleep(0)  # lets cancelled tasks end
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(checked())


async def started(client: Client, work: Awaitable[str]) -> "asyncio.Task[str]":
    task = asyncio.ensure_future(while_connected(client.receive, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_result_of_work() -> None:
    async def scenario(client: Client, work: Work) -> None:
        client.messages.append({"type": "http.request", "body": b"", "more_body": False})
        task = await started(client, work())
        work.released.set()
        assert await task == "done"
        client.gone.set()  # a result that is ready is returned despite the disconnection
        assert await while_connected(client.receive, work()) == "done"

    run(scenario)


def test_disconnection_cancels_work() -> None:
    async def scenario(client: Client, work: Work) -> None:
        task = await started(client, work())
        client.gone.set()
        with pytest.raises(ClientDisconnect):
            await task
        assert work.is_cancelled

    run(scenario)


def test_cancelled_caller_cancels_work() -> None:
    async def scenario(client: Client, work: Work) -> None:
        task = await started(client, work())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.is_cancelled

    run(scenario)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_caller_is_as_cancelled_as_before(is_cancelled: bool) -> None:
    """The caller runs the work itself, which is cancelled with it."""

    async def answer(client: Client, work: Work) -> int:
        with pytest.raises(ClientDisconnect):
            await while_connected(client.receive, work())
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    async def scenario(client: Client, work: Work) -> None:
        task = asyncio.create_task(answer(client, work))
        await asyncio.sleep(0.01)
        client.gone.set()
        await asyncio.sleep(0)  # the disconnection is noticed in the next turn
        if is_cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task == 0

    run(scenario)


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()])
def test_error_of_work(error: BaseException) -> None:
    async def failing() -> str:
        raise error

    async def scenario(client: Client, _: Work) -> None:
        with pytest.raises(type(error)):
            await while_connected(client.receive, failing())

    run(scenario)


def test_error_of_receive_cancels_work() -> None:
    async def failing() -> Message:
        raise ValueError("broken")

    async def scenario(_: Client, work: Work) -> None:
        with pytest.raises(ValueError, match="broken"):
            await while_connected(failing, work())
        assert not work.released.is_set()

    run(scenario)
