"""Batches are checked and begun in their turn, whatever happens to the others."""

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

import pytest

from service.batches import validation
from service.batches.dispatcher import WaitingBatches
from service.batches.job import Job
from service.batches.journal import Journal
from service.batches.lines import OutputLine, OutputResponse
from service.batches.store import Store
from service.batches.wire import Batch
from tests.support.batch_lines import line
from tests.support.batch_runs import (
    blocked,
    completed,
    create,
    ends,
    mark_begun,
    now,
    output,
    release,
    working,
)
from tests.support.core_calls import run, until


def test_an_invalid_file_fails_its_batch(store: Store) -> None:
    batch = completed(store, create(store, line("a"), line("a")))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.code, error.line) for error in batch.errors.data] == [("duplicate_custom_id", 2)]


def test_a_file_that_was_deleted_fails_its_batch(store: Store) -> None:
    batch = create(store, line("a"))
    store.of("me").remove_file(batch.input_file_id)
    failed = completed(store, batch)
    assert failed.errors is not None
    assert [error.code for error in failed.errors.data] == ["file_not_found"]


def open_inputs(store: Store, *batches: Batch) -> int:
    """Return the number of open input files."""
    paths = {str(store.of("me").content(batch.input_file_id)) for batch in batches}
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(each.readlink()))
    return sum(link in paths for link in links)


def begun(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage().split()[1].rstrip(":")
        for record in caplog.records
        if "requests wait" in record.msg
    ]


def test_one_batch_of_a_key_runs_at_a_time_and_the_others_are_ids(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.batches.dispatcher")

    async def scenario() -> None:
        core, decoder = blocked()
        batches = []
        for batch in range(3):
            lines = [line(f"{batch}-{number}") for number in range(20)]
            batches.append(create(store, *lines))
        async with working(store, core):
            await until(lambda: all(now(store, batch).status == "in_progress" for batch in batches))
            await until(lambda: decoder.num_waiting)
            assert open_inputs(store, *batches) == open_inputs(store, batches[0]) == 1
            assert begun(caplog) == [batches[0].id]
            release(decoder)
            await until(ends(store, *batches))
        assert all(now(store, batch).request_counts.completed == 20 for batch in batches)
        assert begun(caplog) == [batch.id for batch in batches]

    run(scenario())


def test_the_next_batch_begins_when_the_last_request_of_the_one_before_is_in_flight(
    store: Store,
) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        first = create(store, line("a"))
        second = create(store, line("a"))
        async with working(store, core):
            await until(lambda: open_inputs(store, second) and decoder.num_waiting)
            assert now(store, first).status == "in_progress"

    run(scenario())


def test_files_are_checked_one_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_PIECE_BYTES", 1)

    async def scenario() -> None:
        core, _ = blocked()
        lines = [line(str(number)) for number in range(5)]
        batches = [create(store, *lines) for _ in range(4)]
        async with working(store, core):
            nums_open = []
            while not all(now(store, batch).status == "in_progress" for batch in batches):
                nums_open.append(open_inputs(store, *batches[1:]))
                await asyncio.sleep(0)
            assert max(nums_open) == 1

    run(scenario())


def test_a_waiting_batch_is_cancelled_at_once_and_keeps_what_is_answered(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        first, waiting = (create(store, line("a"), line("b")) for _ in range(2))
        content = store.of("me").content
        mark_begun(store, first, 2)
        state = mark_begun(store, waiting, 2)
        response = OutputResponse(status_code=200, request_id="r", body={})
        answer = OutputLine(id="a", custom_id="a", response=response).rendered()
        Journal.open(content(state.output_id), content(state.error_id)).append([answer])
        async with working(store, core):
            await until(lambda: decoder.num_waiting)
            store.of("me").cancel(waiting.id)
            await until(ends(store, waiting))
            assert now(store, first).status == "in_progress"
        cancelled = now(store, waiting)
        assert (cancelled.status, bool(cancelled.cancelled_at)) == ("cancelled", True)
        assert output(store.of("me"), cancelled.output_file_id).keys() == {"a"}

    run(scenario())


def test_a_batch_that_is_cancelled_before_its_file_is_checked_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_PIECE_BYTES", 1)
    monkeypatch.setattr(validation, "_PAUSE_S", 0.1)
    checked = create(store, *(line(str(number)) for number in range(50)))
    waiting = create(store, line("a"))
    store.of("me").cancel(waiting.id)
    ended = completed(store, waiting)
    assert (ended.status, bool(ended.cancelled_at), bool(ended.cancelling_at)) == (
        "cancelled",
        True,
        True,
    )
    assert ended.request_counts.total == 0
    assert now(store, checked).status == "validating"


def test_a_batch_that_cannot_be_read_does_not_stop_the_others(store: Store) -> None:
    broken = create(store, line("a"), owner="other")
    batch = create(store, line("a"))
    (store.of("other").batches / f"{broken.id}.json").write_text("{")
    assert completed(store, batch).status == "completed"


def test_a_defect_outside_of_a_request_fails_the_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the file is another than the one that was checked.

    It is read while the folder is slow.
    """
    monkeypatch.setattr(Job, "is_to_end", lambda _: time.sleep(0.05))
    batch = create(store, line("a"), line("b"))
    mark_begun(store, batch, 2)
    store.of("me").content(batch.input_file_id).write_bytes(b"{}\n{}\n")
    failed = completed(store, batch)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert [error.code for error in failed.errors.data] == ["internal"]


def waiting(*batches: tuple[str, str]) -> WaitingBatches:
    found = WaitingBatches()
    for owner, batch_id in batches:
        found.add(owner, batch_id)
    return found


def taken(batches: WaitingBatches) -> list[str]:
    ids = []
    while (found := batches.take()) is not None:
        ids.append(found[1])
    return ids


def test_keys_take_turns_and_the_oldest_batch_of_a_key_is_first() -> None:
    assert taken(waiting(("a", "3"), ("a", "2"), ("b", "5"), ("a", "1"), ("b", "4"))) == [
        "1",
        "4",
        "2",
        "5",
        "3",
    ]


def test_the_key_whose_turn_is_longest_ago_is_next_also_when_it_comes_back() -> None:
    batches = waiting(("a", "1"), ("b", "2"))
    assert (batches.take(), batches.take(), batches.take()) == (("a", "1"), ("b", "2"), None)
    batches.add("b", "3")
    batches.add("a", "4")
    assert taken(batches) == ["4", "3"]


def test_a_busy_key_waits() -> None:
    batches = waiting(("a", "1"), ("b", "2"))
    assert batches.take(busy={"a"}) == ("b", "2")
    assert batches.take(busy={"a"}) is None
    assert batches.take() == ("a", "1")


def test_a_removed_batch_has_no_turn() -> None:
    batches = waiting(("a", "1"), ("a", "2"))
    assert batches.remove("a", "1")
    assert not batches.remove("a", "1")
    assert not batches.remove("b", "2")
    assert taken(batches) == ["2"]
