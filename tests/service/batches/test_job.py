"""Each request has one line when its batch ends, however it ends, and however often its process
did.
"""

import asyncio
import time

import pytest

from service.admission.traffic_gaps import MAX_RUNNING
from service.batches import dispatcher
from service.batches.store import MAX_BYTES_PER_KEY, Store
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
from tests.support.full_disk import full_disk
from tests.support.rest_client import OCR


def test_a_process_that_ends_early_leaves_the_rest_to_the_next(store: Store) -> None:
    """Every other line is bad, and has its error once."""
    good = {f"good-{number}" for number in range(100)}
    bad = {f"bad-{number}" for number in range(100)}
    lines = [
        line(each, body=OCR if each in good else {"task": "ocr"})
        for each in sorted(good | bad, key=_number)
    ]
    batch = create(store, *lines)

    def num_ended() -> int:
        counts = now(store, batch).request_counts
        return min(counts.completed, counts.failed)

    async def first(num_done: int) -> None:
        core, decoder = blocked()
        release(decoder)
        async with working(store, core):
            await until(lambda: len(decoder.specs) > num_done + MAX_RUNNING)
            assert decoder.released is not None
            decoder.released.clear()  # or all could be answered before the first write
            await until(lambda: num_ended() > num_done)

    for num_done in (2, 20):
        run(first(num_done))
        assert now(store, batch).status == "in_progress"
        assert num_done < num_ended() < 100
    core, decoder = blocked()

    async def second() -> None:
        release(decoder)
        async with working(store, core):
            await until(ends(store, batch))

    run(second())
    ended = now(store, batch)
    assert ended.request_counts.model_dump() == {"total": 200, "completed": 100, "failed": 100}
    assert output(store.of("me"), ended.output_file_id).keys() == good
    assert output(store.of("me"), ended.error_file_id).keys() == bad
    assert len(decoder.specs) < 80


def _number(custom_id: str) -> int:
    return int(custom_id.rpartition("-")[2])


def test_what_is_answered_is_written_when_the_process_stops(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "_SAVE_S", 60)

    async def scenario() -> None:
        core, decoder = blocked()
        release(decoder)
        batch = create(store, *(line(str(number)) for number in range(40)))
        async with working(store, core):
            await hold_back(decoder, 8)
            assert now(store, batch).request_counts.completed == 0
        assert now(store, batch).request_counts.completed == len(decoder.specs) - 8

    run(scenario())


def test_a_cancelled_batch_keeps_what_is_answered_and_runs_no_more(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        batch = create(store, *(line(str(number)) for number in range(20)))
        async with working(store, core):
            await until(lambda: decoder.specs)
            assert store.of("me").cancel(batch.id).status == "cancelling"
            await asyncio.sleep(0.5)
            assert now(store, batch).status == "cancelling"
            release(decoder)
            await until(ends(store, batch))
        ended = now(store, batch)
        assert ended.status == "cancelled"
        assert ended.cancelled_at
        assert ended.request_counts.completed == len(decoder.specs) < 20
        assert len(output(store.of("me"), ended.output_file_id)) == len(decoder.specs)

    run(scenario())


def test_what_is_not_answered_within_a_day_expires(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        batch = create(store, *(line(str(number)) for number in range(20)))
        async with working(store, core):
            await until(lambda: decoder.specs)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + 24 * 3600)
            await asyncio.sleep(0.5)
            release(decoder)
            await until(ends(store, batch))
        ended = now(store, batch)
        assert (ended.status, bool(ended.expired_at)) == ("expired", True)
        answered = output(store.of("me"), ended.output_file_id)
        expired = output(store.of("me"), ended.error_file_id)
        assert answered.keys() | expired.keys() == {str(number) for number in range(20)}
        assert not answered.keys() & expired.keys()
        assert {each["error"]["code"] for each in expired.values()} == {"batch_expired"}
        assert {each["response"] for each in expired.values()} == {None}

    run(scenario())


@pytest.mark.parametrize("is_expired", [False, True])
def test_a_batch_whose_key_has_no_room_fails_with_what_is_answered(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_expired: bool
) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        release(decoder)
        batch = create(store, *(line(str(number)) for number in range(200)))
        folder = store.of("me")
        async with working(store, core):
            await until(lambda: now(store, batch).request_counts.completed)
            await hold_back(decoder, 8)
            max_bytes = MAX_BYTES_PER_KEY - folder.num_free_bytes() + 10_000
            monkeypatch.setattr("service.batches.store.MAX_BYTES_PER_KEY", max_bytes)
            if is_expired:
                real = time.time
                monkeypatch.setattr(time, "time", lambda: real() + 24 * 3600)
                await asyncio.sleep(0.5)
            release(decoder)
            await until(ends(store, batch))
        ended = now(store, batch)
        assert (ended.status, bool(ended.failed_at), ended.expired_at) == ("failed", True, None)
        assert ended.errors is not None
        assert [error.code for error in ended.errors.data] == ["storage_limit_exceeded"]
        answered = output(folder, ended.output_file_id)
        assert len(answered) == ended.request_counts.completed > 0
        assert len(output(folder, ended.error_file_id)) == ended.request_counts.failed
        assert (
            max_bytes - 1000
            < sum(each.stat().st_size for each in folder.files.glob("*.jsonl"))
            <= max_bytes
        )

    run(scenario())


def test_answers_that_do_not_fit_on_the_disk_are_written_later_and_once(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        release(decoder)
        batch = create(store, *(line(str(number)) for number in range(100)))
        async with working(store, core):
            await until(lambda: now(store, batch).request_counts.completed)
            await hold_back(decoder, 8)
            state = store.of("me").state(batch.id)
            path = store.of("me").content(state.output_id)
            with full_disk(path.stat().st_size + 100):  # a part of the next line fits
                release(decoder)
                await until(lambda: path.read_bytes()[-1:] != b"\n")
                await asyncio.sleep(0.05)
            await until(ends(store, batch))
        assert now(store, batch).request_counts.completed == 100
        assert len(output(store.of("me"), now(store, batch).output_file_id)) == 100

    run(scenario())
