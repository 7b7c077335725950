"""Requests of batches run in the gaps of online traffic, and API keys take turns."""

import asyncio
from collections.abc import Callable
from functools import partial

from service.admission.traffic_gaps import TrafficGaps
from service.batches.store import Store
from service.batches.wire import Batch
from tests.support.batch_lines import line
from tests.support.batch_runs import (
    blocked,
    create,
    ends,
    hold_back,
    now,
    output,
    release,
    working,
)
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import context
from tests.support.rest_client import OCR, SMALL_PNG


def test_api_keys_take_turns(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        first = create(store, *(line(str(number)) for number in range(100)), owner="first")
        second = create(store, line("a", body={**OCR, "task": "captioning"}), owner="second")
        async with working(store, core):
            for batch, owner in [(first, "first"), (second, "second")]:
                await until(partial(is_begun, store, batch, owner))
            release(decoder)
            await until(ends(store, first, owner="first"))
        prompts = [str(spec.segments) for spec in decoder.specs]
        assert len(set(prompts)) == 2
        assert prompts.index(min(prompts, key=prompts.count)) < 20

    run(scenario())


def is_begun(store: Store, batch: Batch, owner: str) -> bool:
    return now(store, batch, owner).status == "in_progress"


def _grows_by(decoder: FakeDecoder, num_requests: int) -> Callable[[], bool]:
    num_sent = len(decoder.specs)
    return lambda: len(decoder.specs) > num_sent + num_requests


def test_an_online_request_cancels_what_runs_and_each_is_put_back_into_its_batch(store: Store) -> None:
    async def scenario() -> None:
        gaps = TrafficGaps()
        core, decoder = blocked(gaps)
        release(decoder)
        batches = {
            owner: create(store, *(line(f"{owner}-{number}") for number in range(40)), owner=owner)
            for owner in ("first", "second")
        }
        async with working(store, core, gaps):
            for num_cancelled in (8, 16):
                await hold_back(decoder, 8)
                online = asyncio.create_task(core.predict(SMALL_PNG, {"task": "ocr"}, context()))
                await until(lambda: decoder.num_cancelled)
                await until(lambda: decoder.num_waiting == 1)  # the online request
                assert decoder.num_cancelled == num_cancelled
                release(decoder)
                await online
                await until(_grows_by(decoder, 8))
            for owner, batch in batches.items():
                await until(ends(store, batch, owner=owner))
        for owner, batch in batches.items():
            assert now(store, batch, owner).status == "completed"
            answered = output(store.of(owner), now(store, batch, owner).output_file_id)
            assert answered.keys() == {f"{owner}-{number}" for number in range(40)}

    run(scenario())
