"""Each request of a batch has one line with the answer of its endpoint, however the batch ends, and
however often its process did.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from service.admission.places import TrafficGaps
from service.batches import store as store_module
from service.batches import worker as worker_module
from service.batches.store import MAX_BYTES_PER_KEY, BatchState, LinePlace, OutputLine, Store
from service.batches.wire import Batch
from service.batches.worker import BatchWorker, InputCheck
from service.errors import DeadlineExceeded
from service.http.body import parsed_bytes
from service.telemetry.metrics import BATCH_REQUESTS_WAITING
from tests.support.batch_runs import (
    CHAT,
    CHAT_BODY,
    PREDICT,
    SETTINGS,
    add_file,
    blocked,
    completed,
    create,
    ends,
    hold_back,
    jsonl,
    line,
    now,
    output,
    release,
    working,
)
from tests.support.core_calls import until
from tests.support.export_cli import full_disk
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, context, make_core
from tests.support.rest_client import OCR, SMALL_PNG
from wire.runner_channel import RunnerUnreachable


def codes(batch: Batch) -> list[str]:
    return [] if batch.errors is None else [error.code for error in batch.errors.data]


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        (PREDICT, OCR, ("result", "text")),
        (CHAT, CHAT_BODY, ("choices", 0, "message", "content")),
        ("/v1/compare", OCR, ("answers", 1, "result", "text")),
        (
            "/v1/analyze",
            {"image": OCR["image"], "steps": [{"id": "text", "task": "ocr"}]},
            ("steps", 0, "answers", 0, "result", "text"),
        ),
    ],
)
async def test_each_request_has_its_answer(
    store: Store, endpoint: str, body: object, path: tuple[str | int, ...]
) -> None:
    requests = [line(str(number), endpoint, body) for number in range(20)]
    batch = await completed(store, create(store, *requests, endpoint=endpoint))
    assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    lines = output(store, batch.output_file_id)
    assert set(lines) == {str(number) for number in range(20)}
    for answer in lines.values():
        response = answer["response"]
        assert (response["status_code"], answer["error"]) == (200, None)
        value = response["body"]
        assert value["id"] == response["request_id"]
        for name in path:
            value = value[name]
        assert value == "HELLO"


HOSTILE_BODIES = {
    "depth": '{"image": 1, "task": ' + "[" * 190 + "]" * 190 + "}",
    "integer": '{"image": "IMAGE", "task": "ocr", "seed": 1' + "0" * 400 + "}",
    "infinity": '{"image": "IMAGE", "task": "ocr", "temperature": 1e400}',
    "region": '{"image": "IMAGE", "task": "region_description", "region": [0, 0, 1e400, 1]}',
}


async def test_errors_are_those_of_the_endpoint(store: Store) -> None:
    frame = '{"custom_id": "%s", "method": "POST", "url": "/v1/predict", "body": %s}\n'
    bodies = {name: body.replace("IMAGE", OCR["image"]) for name, body in HOSTILE_BODIES.items()}
    lines = [
        line("good"),
        "".join(frame % item for item in bodies.items()).encode(),
        line("model", body={**OCR, "model": "gpt"}),
        line("image", body={"task": "ocr"}),
        line("bytes", body={**OCR, "image": "####"}),
        line("stream", body={**OCR, "stream": True}),
    ]
    batch = await completed(store, create(store, *lines))
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 9, "completed": 1, "failed": 8}
    assert set(output(store, batch.output_file_id)) == {"good"}
    failed = output(store, batch.error_file_id)
    statuses = {custom_id: error["response"]["status_code"] for custom_id, error in failed.items()}
    others = {"model": 404, "image": 400, "bytes": 415, "stream": 400}
    assert statuses == others | dict.fromkeys(bodies, 400)
    assert failed["model"]["response"]["body"]["error"]["code"] == "unknown_model"
    chat = create(store, line("a", CHAT, {**CHAT_BODY, "stream": True}), endpoint=CHAT)
    line_of_chat = output(store, (await completed(store, chat)).error_file_id)["a"]
    error = line_of_chat["response"]["body"]["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "stream")


async def test_missing_runner_is_waited_for(store: Store) -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS, failure=RunnerUnreachable())
    batch = create(store, line("a"))
    async with working(store, make_core(decoders={FLORENCE_ID: decoder})):
        await until(lambda: len(decoder.specs) > 5)
        assert now(store, batch).status == "in_progress"
        store.cancel("me", batch.id)
        await until(ends(store, batch))
    assert now(store, batch).status == "cancelled"


async def test_late_request_has_three_attempts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[None] = []

    async def is_late(*_: object) -> None:
        attempts.append(None)
        raise DeadlineExceeded("late")

    monkeypatch.setattr(worker_module, "_answer_body", is_late)
    monkeypatch.setattr(worker_module, "_RETRY_AFTER_S", 0)
    batch = await completed(store, create(store, line("a")))
    assert output(store, batch.error_file_id)["a"]["response"]["status_code"] == 504
    assert len(attempts) == 3


async def test_request_waits_for_memory(store: Store) -> None:
    data = jsonl(line("a")).strip()
    num_bytes = len(data) + parsed_bytes(data)

    core = make_core(max_bytes=num_bytes)
    online = context()
    core.places.hold(online, 1)  # its client gets half of the memory
    batch = create(store, line("a"))
    async with working(store, core):
        await until(lambda: now(store, batch).status == "in_progress")
        await asyncio.sleep(0.1)
        assert now(store, batch).request_counts.completed == 0
        await core.places.leave(online)
        await until(ends(store, batch))
    assert now(store, batch).request_counts.completed == 1
    assert core.places.num_bytes == 0
    core, decoder = blocked()
    create(store, line("a"))
    async with working(store, core):
        await until(lambda: decoder.num_waiting)
        assert core.places.num_bytes == num_bytes
    assert core.places.num_bytes == 0


async def test_keys_take_turns(store: Store) -> None:
    gaps = TrafficGaps()
    worker = BatchWorker(store, make_core(), gaps, SETTINGS)
    order: list[str] = []

    async def start(owner: str) -> None:
        async with worker.turns.slot(owner):
            await gaps.wait()
            order.append(owner)

    gaps.begin_online()
    gaps.end_online()  # the gap begins in a moment
    async with asyncio.TaskGroup() as group:
        for owner in "aaabb":
            group.create_task(start(owner))
        await asyncio.sleep(0)
        assert order == []
    assert order == list("ababa")


def grows_by(decoder: FakeDecoder, num_requests: int) -> Callable[[], bool]:
    num_sent = len(decoder.specs)
    return lambda: len(decoder.specs) > num_sent + num_requests


async def test_online_request_cancels_and_puts_back(store: Store) -> None:
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
            await until(grows_by(decoder, 8))
        for owner, batch in batches.items():
            await until(ends(store, batch, owner=owner))
    assert {spec.client for spec in decoder.specs} == {"", context().quota.name}
    for owner, batch in batches.items():
        assert now(store, batch, owner).status == "completed"
        answered = output(store, now(store, batch, owner).output_file_id, owner)
        assert answered.keys() == {f"{owner}-{number}" for number in range(40)}


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_unusable_file_fails_its_batch(store: Store, is_deleted: bool) -> None:
    batch = create(store, line("a"), line("a"))
    if is_deleted:
        store.content(batch.input_file_id).unlink()
    failed = await completed(store, batch)
    assert (failed.status, bool(failed.failed_at)) == ("failed", True)
    assert codes(failed) == ["file_not_found" if is_deleted else "duplicate_custom_id"]


def begun_batches(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [text.split()[1][:-1] for text in messages if text.endswith("requests wait")]


async def test_batches_of_a_key_run_in_order(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.batches.worker")
    core, decoder = blocked()
    lines = [line(str(number)) for number in range(20)]
    batches = [create(store, *lines) for _ in range(3)]
    async with working(store, core):
        await until(lambda: all(now(store, batch).status == "in_progress" for batch in batches))
        await until(lambda: decoder.num_waiting)
        assert begun_batches(caplog) == [batches[0].id]
        await until(lambda: BATCH_REQUESTS_WAITING._value.get() == 60)
        release(decoder)
        await until(ends(store, *batches))
    assert all(now(store, batch).request_counts.completed == 20 for batch in batches)
    assert begun_batches(caplog) == [batch.id for batch in batches]


async def test_next_batch_begins_early(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """All requests of the first one are in flight."""
    caplog.set_level(logging.INFO, "service.batches.worker")
    core, decoder = blocked()
    batches = [create(store, line("a")) for _ in range(2)]
    async with working(store, core):
        await until(lambda: decoder.num_waiting and len(begun_batches(caplog)) == 2)
        release(decoder)
        await until(ends(store, *batches))


async def test_files_are_checked_in_turns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = ("one", "one", "two")
    batches = [create(store, line("a"), owner=owner) for owner in owners]
    checked: list[str] = []
    begin = Store.begin

    def noted(store: Store, state: BatchState, places: Sequence[LinePlace]) -> None:
        checked.append(state.id)
        begin(store, state, places)

    monkeypatch.setattr(Store, "begin", noted)
    core, _ = blocked()
    async with working(store, core):
        await until(lambda: len(checked) == 3)
    assert checked.index(batches[1].id) == 2


async def test_waiting_batch_is_cancelled_at_once(store: Store) -> None:
    core, decoder = blocked()
    first, waiting = (create(store, line("a"), line("b")) for _ in range(2))
    async with working(store, core):
        await until(lambda: decoder.num_waiting and now(store, waiting).in_progress_at)
        store.cancel("me", waiting.id)
        await until(ends(store, waiting))
        assert now(store, first).status == "in_progress"
    cancelled = now(store, waiting)
    assert (cancelled.status, cancelled.request_counts.total) == ("cancelled", 2)


async def test_defect_fails_a_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of one batch changes after its check."""
    scan = Store.open_batches
    failures = [RuntimeError("a defect"), OSError("the disk")]

    def fails_at_first(store: Store) -> object:
        if failures:
            raise failures.pop()
        return scan(store)

    broken = create(store, line("a"), line("b"))
    store.begin(store.open_batches()[0], [LinePlace(1, 0, 2)])
    store.content(broken.input_file_id).write_bytes(b"{}\n{}\n")
    monkeypatch.setattr(Store, "open_batches", fails_at_first)
    failed = await completed(store, broken)
    assert (failed.status, codes(failed), failures) == ("failed", ["internal"], [])


@pytest.mark.parametrize("has_ended", [True, False])
async def test_stale_scan_runs_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    """A scan may be older than the end of a batch, or its check, in whose lane it would run."""
    batch = create(store, line("a"))
    (stale,) = store.open_batches()
    if has_ended:
        batch = await completed(store, batch)
        stale.batch.status = "in_progress"
    else:
        store.begin(stale, [LinePlace(1, 0, len(jsonl(line("a"))) - 1)])
    monkeypatch.setattr(Store, "open_batches", lambda _: [stale.model_copy()])
    core, decoder = blocked()
    async with working(store, core):
        await asyncio.sleep(0.1)
    assert decoder.specs == []
    if has_ended:
        assert now(store, batch) == batch
        assert output(store, batch.output_file_id)


def num_ended(store: Store, batch: Batch) -> int:
    counts = now(store, batch).request_counts
    return min(counts.completed, counts.failed)


async def end_after(store: Store, batch: Batch, num_done: int) -> None:
    core, decoder = blocked()
    release(decoder)
    async with working(store, core):
        await until(lambda: len(decoder.specs) > num_done + 8)
        assert decoder.released is not None
        decoder.released.clear()  # or all could be answered before the first write
        await until(lambda: num_ended(store, batch) > num_done)


async def test_next_process_continues(store: Store) -> None:
    """Every other line is bad, and has its error once."""
    good = {f"good-{number}" for number in range(100)}
    bad = {f"bad-{number}" for number in range(100)}
    names = sorted(good | bad, key=lambda name: int(name.rpartition("-")[2]))
    lines = [line(name, body=OCR if name in good else {"task": "ocr"}) for name in names]
    batch = create(store, *lines)

    for num_done in (2, 20):
        await end_after(store, batch, num_done)
        assert now(store, batch).status == "in_progress"
        assert num_done < num_ended(store, batch) < 100
    core, decoder = blocked()
    release(decoder)
    async with working(store, core):
        await until(ends(store, batch))
    ended = now(store, batch)
    assert ended.request_counts.model_dump() == {"total": 200, "completed": 100, "failed": 100}
    assert output(store, ended.output_file_id).keys() == good
    assert output(store, ended.error_file_id).keys() == bad
    assert len(decoder.specs) < 80


async def test_answers_are_written_at_the_stop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_SAVE_S", 60)

    core, decoder = blocked()
    release(decoder)
    batch = create(store, *(line(str(number)) for number in range(40)))
    async with working(store, core):
        await hold_back(decoder, 8)
        assert now(store, batch).request_counts.completed == 0
    assert now(store, batch).request_counts.completed == len(decoder.specs) - 8


async def test_cancelled_batch_runs_no_more(store: Store) -> None:
    core, decoder = blocked()
    batch = create(store, *(line(str(number)) for number in range(20)))
    async with working(store, core):
        await until(lambda: decoder.specs)
        store.cancel("me", batch.id)
        await asyncio.sleep(0.5)
        assert now(store, batch).status == "cancelling"
        release(decoder)
        await until(ends(store, batch))
    ended = now(store, batch)
    assert (ended.status, bool(ended.cancelled_at)) == ("cancelled", True)
    assert ended.request_counts.completed == len(decoder.specs) < 20
    assert len(output(store, ended.output_file_id)) == len(decoder.specs)


async def pass_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the running batch has saved once and noticed its end."""
    real = time.time
    append = Store.append
    saves: list[None] = []

    def counted(store: Store, state: BatchState, lines: Sequence[OutputLine]) -> Batch:
        saves.append(None)
        return append(store, state, lines)

    monkeypatch.setattr(time, "time", lambda: real() + 24 * 3600)
    monkeypatch.setattr(Store, "append", counted)
    await until(lambda: len(saves) > 2)


async def test_unanswered_requests_expire(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    core, decoder = blocked()
    batch = create(store, *(line(str(number)) for number in range(20)))
    async with working(store, core):
        await until(lambda: decoder.specs)
        await pass_a_day(monkeypatch)
        release(decoder)
        await until(ends(store, batch))
    ended = now(store, batch)
    assert (ended.status, bool(ended.expired_at)) == ("expired", True)
    answered = output(store, ended.output_file_id)
    expired = output(store, ended.error_file_id)
    assert answered.keys() | expired.keys() == {str(number) for number in range(20)}
    assert not answered.keys() & expired.keys()
    assert {document["error"]["code"] for document in expired.values()} == {"batch_expired"}
    assert {document["response"] for document in expired.values()} == {None}


@pytest.mark.parametrize("is_expired", [False, True])
async def test_batch_without_room_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_expired: bool
) -> None:
    core, decoder = blocked()
    release(decoder)
    batch = create(store, *(line(str(number)) for number in range(200)))
    async with working(store, core):
        await hold_back(decoder, 8)
        await until(lambda: now(store, batch).request_counts.completed == len(decoder.specs) - 8)
        num_bytes = store.open_batches()[0].bytes + store.file("me", batch.input_file_id).bytes
        monkeypatch.setattr(store_module, "MAX_BYTES_PER_KEY", num_bytes + 10_000)
        if is_expired:
            await pass_a_day(monkeypatch)
        release(decoder)
        await until(ends(store, batch))
    ended = now(store, batch)
    assert (ended.status, codes(ended)) == ("failed", ["storage_limit_exceeded"])
    assert (bool(ended.failed_at), ended.expired_at) == (True, None)
    assert f" {MAX_BYTES_PER_KEY} bytes" in str(ended.errors)
    answered = output(store, ended.output_file_id)
    assert len(answered) == ended.request_counts.completed > 0
    assert len(output(store, ended.error_file_id)) == ended.request_counts.failed


async def test_full_disk_delays_answers(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    core, decoder = blocked()
    release(decoder)
    batch = create(store, *(line(str(number)) for number in range(100)))
    async with working(store, core):
        await hold_back(decoder, 8)
        with full_disk(1000):
            release(decoder)
            await until(lambda: "waits" in caplog.text)
            await asyncio.sleep(0.05)
        await until(ends(store, batch))
    assert now(store, batch).request_counts.completed == 100
    assert len(output(store, now(store, batch).output_file_id)) == 100


async def test_expired_files_leave(store: Store) -> None:
    file_id = add_file(store, b"{}", kept_s=-10)
    async with working(store, make_core()):
        await until(lambda: not store.content(file_id).exists())


async def test_second_worker_takes_over(store: Store) -> None:
    lock = store.lock()
    assert lock is not None
    batch = create(store, line("a"))
    async with working(store, make_core()):
        await asyncio.sleep(0.1)
        assert now(store, batch).status == "validating"
        lock.close()
        await until(ends(store, batch))
    released = store.lock()
    assert released is not None
    released.close()


MAX_LINE_BYTES = 5_000
LINES = [jsonl(line(custom_id)).strip() for custom_id in ("a", "b\N{GRINNING FACE}", "c")]


def check(folder: Path, content: bytes) -> InputCheck:
    path = folder / "input.jsonl"
    path.write_bytes(content)
    check = InputCheck(PREDICT, MAX_LINE_BYTES)
    check.run(path)
    return check


def codes_of(folder: Path, content: bytes) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in check(folder, content).errors]


def padded(num_bytes: int) -> bytes:
    """Return a request of so many bytes."""
    data = jsonl(line("long", body={"image": ""})).strip()
    return data.replace(b'""', b'"%s"' % (b"x" * (num_bytes - len(data))))


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b"[" * 4000, "invalid_json_line", None),
        (jsonl({"method": "POST", "url": PREDICT, "body": {}}), "invalid_request", "custom_id"),
        (jsonl(line("")), "invalid_request", "custom_id"),
        (jsonl(line("x" * 513)), "invalid_request", "custom_id"),
        (jsonl(line("\ud800")), "invalid_json_line", None),
        (jsonl(line("b", body=[])), "invalid_request", "body"),
        (jsonl(line("b", CHAT)), "url_mismatch", "url"),
        (jsonl(line("a")), "duplicate_custom_id", "custom_id"),
        (padded(MAX_LINE_BYTES + 1), "invalid_request", None),
        (padded(2 * MAX_LINE_BYTES), "invalid_request", None),
    ],
)
def test_invalid_line_has_number(tmp_path: Path, bad: bytes, code: str, param: str | None) -> None:
    errors = check(tmp_path, jsonl(line("a")) + b"\n" + bad).errors
    assert (errors[0].line, errors[0].code, errors[0].param) == (3, code, param)
    assert errors[0].message.endswith(".")


def test_longest_line_is_accepted(tmp_path: Path) -> None:
    body = jsonl(line("a", body={"seed": 10**400}))
    checked = check(tmp_path, body + padded(MAX_LINE_BYTES))
    assert (len(checked.places), checked.errors) == (2, [])


def test_file_needs_requests(tmp_path: Path) -> None:
    assert codes_of(tmp_path, b"\n\n") == [("empty_file", None)]


def test_errors_are_limited(tmp_path: Path) -> None:
    assert codes_of(tmp_path, b"{\n" * 1000) == [
        ("invalid_json_line", number) for number in range(1, 101)
    ]


@pytest.mark.parametrize("name", ["MAX_REQUESTS", "MAX_BLANK_LINES"])
def test_lines_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(worker_module, name, 3)
    content = jsonl(*map(line, "abc")) + b"\n" * 3
    assert codes_of(tmp_path, content) == []
    assert codes_of(tmp_path, content + jsonl(line("d")) + b"\n") == [("too_many_tasks", None)]


@pytest.mark.parametrize(
    ("ends", "numbers"),
    [
        ((b"\n", b"\n", b""), [2, 3, 4]),
        ((b"\r\n", b"\n\n \n", b"\n"), [2, 3, 6]),
        ((b"  \n \t", b"\n\r\n  ", b"\n \n"), [2, 3, 5]),
    ],
)
def test_places_of_requests(tmp_path: Path, ends: tuple[bytes, ...], numbers: list[int]) -> None:
    content = b"\n" + b"".join(data + end for data, end in zip(LINES, ends, strict=True))
    places = check(tmp_path, content).places
    lines = [content[place.start : place.start + place.num_bytes] for place in places]
    assert lines == LINES
    assert [place.number for place in places] == numbers
