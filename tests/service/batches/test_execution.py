"""Requests of batches run in the gaps of online traffic, and API keys take turns."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from service.admission.traffic_gaps import TrafficGaps
from service.batches.execution import BatchRun, Executor
from service.batches.lines import IdHashes, InputFile
from service.batches.store import Store
from tests.support.batch_lines import jsonl, line
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
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, context, make_core
from tests.support.rest_client import OCR, SMALL_PNG


def batch_run(folder: Path, owner: str, batch_id: str, num_lines: int, task: str) -> BatchRun:
    path = folder / f"{owner}-{batch_id}"
    path.write_bytes(
        jsonl(*(line(str(number), body={**OCR, "task": task}) for number in range(num_lines)))
    )
    return BatchRun(owner, batch_id, InputFile(path, 10_000), IdHashes(), lambda: None)


def test_keys_take_turns_and_the_oldest_batch_of_a_key_is_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        decoder = FakeDecoder(FLORENCE_ANSWERS)
        executor = Executor(
            make_core(decoders={FLORENCE_ID: decoder}), TrafficGaps(max_running=1), 5
        )
        runs = [
            batch_run(tmp_path, "one", "3", 2, "captioning"),
            batch_run(tmp_path, "one", "1", 10, "ocr"),
            batch_run(tmp_path, "two", "2", 2, "captioning"),
        ]
        for each in runs:
            executor.add(each)
        running = asyncio.create_task(executor.run())
        await until(lambda: all(each.is_over for each in runs))
        running.cancel()
        ocr = decoder.specs[0].segments
        assert [index for index, spec in enumerate(decoder.specs) if spec.segments != ocr] == [
            1,
            3,
            12,
            13,
        ]

    run(scenario())


def _grows_by(decoder: FakeDecoder, num_requests: int) -> Callable[[], bool]:
    num_sent = len(decoder.specs)
    return lambda: len(decoder.specs) > num_sent + num_requests


def test_an_online_request_cancels_what_runs_and_each_is_put_back_into_its_batch(
    store: Store,
) -> None:
    async def scenario() -> None:
        gaps = TrafficGaps()
        core, decoder = blocked(gaps)
        release(decoder)
        batches = {}
        for owner in ("first", "second"):
            lines = [line(f"{owner}-{number}") for number in range(40)]
            batches[owner] = create(store, *lines, owner=owner)
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
