"""Threads that clients share, with work that the test ends."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from service.admission.threads import FairThreads, current_client
from service.rpc.proto.vision_pb2 import PredictRequest
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.api_keys import FakeClock, api_keys
from tests.support.fake_service import make_core
from tests.support.rest_client import OCR, SMALL_PNG, client, grpc_channel


class Work:
    """Items of work in threads, each of which ends when it is told to."""

    def __init__(self, threads: FairThreads) -> None:
        self._threads = threads
        self._ends: dict[str, threading.Event] = {}
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        # by the work after which they are cancelled, before they know that its thread is theirs
        self.cancelled_at_end: dict[str, asyncio.Task[None]] = {}

    async def start(self, client: str, name: str) -> None:
        self._ends[name] = threading.Event()

        async def run() -> None:
            current_client.set(client)
            await self._threads.run(self._work, name)
            if name in self.cancelled_at_end:
                self.cancelled_at_end[name].cancel()

        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)

    def _work(self, name: str) -> None:
        self.begun.append(name)
        self._ends[name].wait(60)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)


async def test_one_client_gets_all_threads_but_one() -> None:
    work = Work(FairThreads("test", 3))
    for name in ("a1", "a2", "a3", "a4"):
        await work.start("a", name)
    await work.until(lambda: work.begun == ["a1", "a2"])
    await work.start("b", "b1")
    await work.until(lambda: work.begun[2:] == ["b1"])
    for name in ("b1", "a1", "a2", "a3", "a4"):
        await work.end(name)


async def test_client_with_least_time_is_next() -> None:
    clock = FakeClock()
    work = Work(FairThreads("test", 1, clock))
    await work.start("a", "a1")
    await work.until(lambda: work.begun == ["a1"])
    await work.start("a", "a2")
    await work.start("b", "b1")
    clock.now_s += 10  # used by a
    await work.end("a1")
    await work.until(lambda: work.begun[1:] == ["b1"])
    await work.start("b", "b2")
    clock.now_s += 9
    await work.end("b1")
    await work.until(lambda: work.begun[2:] == ["b2"])
    clock.now_s += 2
    await work.end("b2")
    await work.until(lambda: work.begun[3:] == ["a2"])
    await work.end("a2")


async def test_newcomer_is_ahead_of_none_and_behind_none() -> None:
    clock = FakeClock()
    work = Work(FairThreads("test", 1, clock))
    for name in ("a1", "a2", "a3", "a4"):
        await work.start("a", name)
    clock.now_s += 10
    await work.end("a1")
    await work.start("b", "b1")  # begins with the time of a
    await work.end("a2")
    await work.until(lambda: work.begun == ["a1", "a2", "a3"])
    clock.now_s += 1
    await work.end("a3")
    await work.until(lambda: work.begun[3:] == ["b1"])
    for name in ("b1", "a4"):
        await work.end(name)


async def test_cancelled_turn_is_passed_on() -> None:
    work = Work(FairThreads("test", 1))
    for name in ("a1", "a2", "a3"):
        await work.start("a", name)
    work.tasks["a2"].cancel()
    await work.end("a1")
    await work.until(lambda: work.begun == ["a1", "a3"])
    await work.end("a3")


async def test_turn_cancelled_when_given_frees_its_thread() -> None:
    work = Work(FairThreads("test", 1))
    await work.start("a", "a1")
    await work.start("b", "b1")
    await work.until(lambda: work.begun == ["a1"])
    work.cancelled_at_end["a1"] = work.tasks["b1"]
    await work.end("a1")
    await work.start("c", "c1")
    await work.until(lambda: work.begun == ["a1", "c1"])
    await work.end("c1")


async def test_late_cancellation_forgets_no_newer_work() -> None:
    threads = FairThreads("test", 1)
    first_end, newer_end = threading.Event(), threading.Event()
    first = asyncio.create_task(threads.run(first_end.wait, 60))
    await asyncio.sleep(0)
    late = threads.run(first_end.wait, 60)
    late.send(None).cancel()  # its turn, of which it is told later
    first_end.set()
    await first
    newer = asyncio.create_task(threads.run(newer_end.wait, 60))
    await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        late.throw(asyncio.CancelledError())
    newer_end.set()
    assert await newer


@pytest.mark.parametrize("failure", [None, ValueError("broken")])
async def test_cancelled_thread_is_awaited(failure: Exception | None) -> None:
    def work() -> None:
        started.set()
        released.wait(60)
        if failure is not None:
            raise failure

    started = threading.Event()
    released = threading.Event()
    waiting = asyncio.ensure_future(FairThreads("test", 1).run(work))
    await asyncio.to_thread(started.wait, 60)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_failed_work_is_freed_at_once() -> None:
    """Without the garbage collector, which may run minutes later."""

    def fail(body: set[int]) -> None:
        raise ValueError(len(body))

    async def freed() -> "weakref.ref[set[int]]":
        body = set[int]()
        with suppress(ValueError):
            await FairThreads("test", 1).run(fail, body)
        return weakref.ref(body)

    gc.disable()
    try:
        reference = await freed()
        async with asyncio.timeout(60):
            while reference() is not None:  # its thread has it for a moment
                await asyncio.sleep(0.001)
    finally:
        gc.enable()


@pytest.mark.parametrize("interface", ["REST", "gRPC"])
async def test_work_counts_for_its_key(interface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(_threads: FairThreads, function: Callable[..., object], *args: object) -> object:
        clients.add(current_client.get())
        return function(*args)

    clients: set[str] = set()
    monkeypatch.setattr(FairThreads, "run", run)
    keys = api_keys("my-key", "name=mine")
    authorization = "Bearer my-key"
    if interface == "REST":
        headers = {"Authorization": authorization}
        async with client(keys=keys).http(headers) as http:
            (await http.post("/v1/predict", json=OCR)).raise_for_status()
    else:
        async with grpc_channel(make_core(), keys) as channel:
            stub: Any = VisionStub(channel)
            request = PredictRequest(image=SMALL_PNG, task="ocr")
            await stub.Predict(request, metadata=[("authorization", authorization)])
    assert clients == {"mine"}
