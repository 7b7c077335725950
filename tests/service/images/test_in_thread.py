import asyncio
import threading

import pytest

from service.images.decoding import in_thread
from tests.support.core_calls import run


def test_in_thread_returns_the_result_and_raises_the_exception() -> None:
    assert run(in_thread(int, "7")) == 7
    with pytest.raises(ValueError, match="invalid literal"):
        run(in_thread(int, "seven"))


@pytest.mark.parametrize("failure", [None, ValueError("broken")])
def test_cancelled_in_thread_waits_for_its_thread(failure: Exception | None) -> None:
    def work() -> None:
        started.set()
        released.wait(60)
        if failure is not None:
            raise failure

    async def cancel() -> None:
        waiting = asyncio.ensure_future(in_thread(work))
        await asyncio.to_thread(started.wait, 60)
        waiting.cancel()
        await asyncio.sleep(0.01)
        assert not waiting.done()
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    started = threading.Event()
    released = threading.Event()
    run(cancel())
