import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from wire.disconnection import while_connected

T = TypeVar("T")


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


def run(test: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a test and check that no task remains."""

    async def checked() -> T:
        result = await test()
        await asyncio.sleep(0)  # lets cancelled tasks end
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(checked())


async def started(client: Client, work: Work) -> "asyncio.Task[str]":
    task = asyncio.ensure_future(while_connected(client.receive, work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_the_result_is_returned_to_a_connected_client() -> None:
    async def test() -> str:
        client = Client([{"type": "http.request", "body": b"", "more_body": False}])
        work = Work()
        task = await started(client, work)
        work.released.set()
        return await task

    assert run(test) == "done"


def test_the_work_is_cancelled_when_the_client_disconnects() -> None:
    async def test() -> None:
        client = Client()
        work = Work()
        task = await started(client, work)
        client.gone.set()
        with pytest.raises(ClientDisconnect):
            await task
        assert work.is_cancelled

    run(test)


def test_a_result_that_is_ready_is_returned_despite_the_disconnection() -> None:
    async def test() -> str:
        client = Client()
        work = Work()
        client.gone.set()
        work.released.set()
        return await while_connected(client.receive, work())

    assert run(test) == "done"


def test_the_work_is_cancelled_with_its_caller() -> None:
    async def test() -> None:
        client = Client()
        work = Work()
        task = await started(client, work)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert work.is_cancelled

    run(test)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_disconnection_leaves_the_caller_as_cancelled_as_it_was(is_cancelled: bool) -> None:
    """The caller runs the work itself, which is cancelled with it."""

    async def test() -> None:
        client = Client()
        task = asyncio.create_task(answer(client))
        await asyncio.sleep(0.01)
        client.gone.set()
        await asyncio.sleep(0)  # the disconnection is noticed in the next turn
        if is_cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert await task == 0

    async def answer(client: Client) -> int:
        with pytest.raises(ClientDisconnect):
            await while_connected(client.receive, Work()())
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    run(test)


async def failing() -> Any:
    raise ValueError("broken")


def test_exceptions_of_the_work_are_raised() -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="broken"):
            await while_connected(Client().receive, failing())

    run(test)


def test_exceptions_of_receive_cancel_the_work_and_are_raised() -> None:
    async def test() -> None:
        work = Work()
        with pytest.raises(ValueError, match="broken"):
            await while_connected(failing, work())
        assert not work.released.is_set()

    run(test)


def test_work_cancelled_from_elsewhere_raises_cancelled_error() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def test() -> None:
        with pytest.raises(asyncio.CancelledError):
            await while_connected(Client().receive, cancelled())

    run(test)
