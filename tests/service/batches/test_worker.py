"""Batches over the real core with fake runners: order, errors, cancellation, expiry, and a process that ends early."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.admission.traffic_gaps import TrafficGaps
from service.batches import answers, dispatcher, validation, worker
from service.batches.journal import Journal
from service.batches.lines import OutputLine, OutputResponse
from service.batches.store import MAX_BYTES_PER_KEY, BatchState, KeyFolder, Store
from service.batches.wire import ENDED, Batch, BatchRequest
from service.batches.worker import BatchWorker
from service.http.body import parsed_bytes
from service.inference.core import Core
from service.settings import Settings
from tests.support.batch_lines import CHAT, CHAT_BODY, PREDICT, jsonl, line
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, context, make_core
from tests.support.full_disk import full_disk
from tests.support.rest_client import OCR, SMALL_PNG

SETTINGS = Settings(request_timeout_s=5)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and save more often than a service does."""
    for name in ("_SCAN_S", "_SAVE_S", "RETRY_S"):
        monkeypatch.setattr(dispatcher, name, 0.01)
    for name in ("_LOCK_S", "RETRY_S"):
        monkeypatch.setattr(worker, name, 0.01)
    monkeypatch.setattr(answers, "_RETRY_AFTER_S", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "batches")
    store.prepare()
    return store


def create(store: Store, *lines: object, owner: str = "me", endpoint: Any = PREDICT) -> Batch:
    folder = store.of(owner)
    upload = store.uploads / "upload"
    upload.write_bytes(b"".join(each if isinstance(each, bytes) else jsonl(each) for each in lines))
    file = folder.upload(upload, "input.jsonl", 3600)
    asked = {"input_file_id": file.id, "endpoint": endpoint, "completion_window": "24h"}
    return folder.create_batch(BatchRequest.model_validate(asked))


@asynccontextmanager
async def working(store: Store, core: Core, gaps: TrafficGaps | None = None) -> AsyncIterator[None]:
    batches = BatchWorker(store, core, gaps or TrafficGaps(), SETTINGS)
    batches.start()
    try:
        yield
    finally:
        await batches.stop()


def now(store: Store, batch: Batch, owner: str = "me") -> Batch:
    return store.of(owner).state(batch.id).batch


def ends(store: Store, *batches: Batch, owner: str = "me") -> Callable[[], bool]:
    return lambda: all(now(store, batch, owner).status in ENDED for batch in batches)


def completed(store: Store, batch: Batch, core: Core | None = None) -> Batch:
    async def scenario() -> None:
        async with working(store, core or make_core()):
            await until(ends(store, batch))

    run(scenario())
    return now(store, batch)


def output(folder: KeyFolder, file_id: str | None) -> dict[str, Any]:
    """Return the lines of a file by their custom ids, none of which is twice."""
    if file_id is None:
        return {}
    lines = [json.loads(each) for each in folder.content(file_id).read_text().splitlines()]
    assert folder.file(file_id).bytes == folder.content(file_id).stat().st_size
    found = {each["custom_id"]: each for each in lines}
    assert len(found) == len(lines)
    return found


def test_each_request_has_its_answer(store: Store) -> None:
    batch = completed(store, create(store, *(line(str(number)) for number in range(30))))
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
    found = output(store.of("me"), batch.output_file_id)
    assert set(found) == {str(number) for number in range(30)}
    for each in found.values():
        assert each["response"]["status_code"] == 200
        assert each["response"]["body"]["result"] == {"text": "HELLO"}
        assert each["response"]["body"]["id"] == each["response"]["request_id"]
        assert each["error"] is None


def test_chats_and_comparisons_are_answered(store: Store) -> None:
    chat = completed(store, create(store, line("a", CHAT, CHAT_BODY), endpoint=CHAT))
    answer = output(store.of("me"), chat.output_file_id)["a"]["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == "HELLO"
    compared = completed(store, create(store, line("a", "/v1/compare"), endpoint="/v1/compare"))
    answers = output(store.of("me"), compared.output_file_id)["a"]["response"]["body"]["answers"]
    assert [each["result"]["text"] for each in answers] == ["HELLO", "HELLO"]


def test_errors_have_the_status_and_the_body_that_the_endpoint_would_answer(store: Store) -> None:
    lines = [
        line("good"),
        line("model", body={**OCR, "model": "gpt"}),
        line("image", body={"task": "ocr"}),
        line("bytes", body={**OCR, "image": "####"}),
        line("stream", body={**OCR, "stream": True}),
    ]
    batch = completed(store, create(store, *lines))
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 1, "failed": 4}
    assert set(output(store.of("me"), batch.output_file_id)) == {"good"}
    failed = output(store.of("me"), batch.error_file_id)
    statuses = {custom_id: each["response"]["status_code"] for custom_id, each in failed.items()}
    assert statuses == {"model": 404, "image": 400, "bytes": 415, "stream": 400}
    assert failed["model"]["response"]["body"]["error"]["code"] == "unknown_model"
    chat = completed(store, create(store, line("a", CHAT, {**CHAT_BODY, "stream": True}), endpoint=CHAT))
    error = output(store.of("me"), chat.error_file_id)["a"]["response"]["body"]["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "stream")


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


def blocked(gaps: TrafficGaps | None = None) -> tuple[Core, FakeDecoder]:
    """Return a core whose Florence-2 answers nothing until its `released` is set."""
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
    return make_core(decoders={FLORENCE_ID: decoder}, gaps=gaps), decoder


def release(decoder: FakeDecoder) -> None:
    assert decoder.released is not None
    decoder.released.set()


async def hold_back(decoder: FakeDecoder, num_requests: int) -> None:
    """Answer nothing more, and wait until a number of requests is in flight."""
    assert decoder.released is not None
    await until(lambda: len(decoder.specs) > 15)  # each that ends makes room for one more
    decoder.released.clear()
    await until(lambda: decoder.num_waiting == num_requests)


def test_a_process_that_ends_early_leaves_the_rest_to_the_next(store: Store) -> None:
    """Every other line is bad, and has its error once."""
    good, bad = ({f"{kind}-{number}" for number in range(100)} for kind in ("good", "bad"))
    lines = [line(each, body=OCR if each in good else {"task": "ocr"}) for each in sorted(good | bad, key=_number)]
    batch = create(store, *lines)

    def num_ended() -> int:
        counts = now(store, batch).request_counts
        return min(counts.completed, counts.failed)

    async def first(num_done: int) -> None:
        async with working(store, make_core()):
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


def test_a_cancelled_batch_keeps_what_is_answered_and_runs_no_more(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        batch = create(store, *(line(str(number)) for number in range(20)))
        async with working(store, core):
            await until(lambda: decoder.specs)
            assert store.of("me").cancel(batch.id).status == "cancelling"
            await asyncio.sleep(0.05)
            assert now(store, batch).status == "cancelling"
            release(decoder)
            await until(ends(store, batch))
        ended = now(store, batch)
        assert ended.status == "cancelled"
        assert ended.cancelled_at
        assert ended.request_counts.completed == len(decoder.specs) < 20
        assert len(output(store.of("me"), ended.output_file_id)) == len(decoder.specs)

    run(scenario())


def test_a_batch_whose_runner_is_gone_waits_and_can_be_cancelled(store: Store) -> None:
    async def scenario() -> None:
        decoder = FakeDecoder(FLORENCE_ANSWERS, failure=aiohttp.ClientConnectionError())
        core = make_core(decoders={FLORENCE_ID: decoder})
        batch = create(store, line("a"))
        async with working(store, core):
            await until(lambda: len(decoder.specs) > 1)
            assert now(store, batch).status == "in_progress"
            store.of("me").cancel(batch.id)
            await until(ends(store, batch))
        assert now(store, batch).status == "cancelled"

    run(scenario())


def test_what_is_not_answered_within_a_day_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        batch = create(store, *(line(str(number)) for number in range(20)))
        async with working(store, core):
            await until(lambda: decoder.specs)
            real = time.time
            monkeypatch.setattr(time, "time", lambda: real() + 24 * 3600)
            await asyncio.sleep(0.05)
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


def open_inputs(store: Store, *batches: Batch) -> int:
    """Return the number of open input files."""
    paths = {str(store.of("me").content(batch.input_file_id)) for batch in batches}
    links = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(each.readlink()))
    return sum(link in paths for link in links)


def test_one_batch_of_a_key_runs_at_a_time_and_the_others_are_ids(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        batches = [create(store, *(line(f"{batch}-{number}") for number in range(20))) for batch in range(3)]
        async with working(store, core):
            await until(lambda: all(now(store, batch).status == "in_progress" for batch in batches))
            await until(lambda: decoder.num_waiting)
            assert open_inputs(store, *batches) == open_inputs(store, batches[0]) == 1
            release(decoder)
            await until(ends(store, *batches))
        assert all(now(store, batch).request_counts.completed == 20 for batch in batches)

    run(scenario())


def test_files_are_checked_one_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_PIECE_BYTES", 1)

    async def scenario() -> None:
        core, _ = blocked()
        batches = [create(store, *(line(str(number)) for number in range(5))) for _ in range(4)]
        async with working(store, core):
            nums_open = []
            while not all(now(store, batch).status == "in_progress" for batch in batches):
                nums_open.append(open_inputs(store, *batches[1:]))
                await asyncio.sleep(0)
            assert max(nums_open) == 1

    run(scenario())


def mark_begun(store: Store, batch: Batch, num_lines: int) -> BatchState:
    """Store a batch as an earlier process does that has checked its file."""
    state = store.of("me").state(batch.id)
    state.batch.status, state.batch.in_progress_at = "in_progress", state.batch.created_at
    state.batch.request_counts.total = num_lines
    store.of("me").save(state)
    return state


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
    assert (ended.status, bool(ended.cancelled_at), bool(ended.cancelling_at)) == ("cancelled", True, True)
    assert ended.request_counts.total == 0
    assert now(store, checked).status == "validating"


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
                await asyncio.sleep(0.05)
            release(decoder)
            await until(ends(store, batch))
        ended = now(store, batch)
        assert (ended.status, bool(ended.failed_at), ended.expired_at) == ("failed", True, None)
        assert ended.errors is not None
        assert [error.code for error in ended.errors.data] == ["storage_limit_exceeded"]
        answered = output(folder, ended.output_file_id)
        assert len(answered) == ended.request_counts.completed > 0
        assert len(output(folder, ended.error_file_id)) == ended.request_counts.failed
        assert max_bytes - 1000 < sum(each.stat().st_size for each in folder.files.glob("*.jsonl")) <= max_bytes

    run(scenario())


def test_a_request_waits_until_there_is_memory_for_its_line(store: Store) -> None:
    data = jsonl(line("a")).strip()
    core = make_core(max_bytes=len(data) + parsed_bytes(data))

    async def scenario() -> None:
        online = context()
        core.hold(online, 1)  # whose client gets half of the memory
        batch = create(store, line("a"))
        async with working(store, core):
            await until(lambda: now(store, batch).status == "in_progress")
            await asyncio.sleep(0.1)
            assert now(store, batch).request_counts.completed == 0
            await core.leave(online)
            await until(ends(store, batch))
        assert now(store, batch).request_counts.completed == 1
        assert core.num_held_bytes == 0

    run(scenario())


def test_a_request_in_flight_holds_its_line_and_a_cancelled_one_does_not(store: Store) -> None:
    async def scenario() -> None:
        core, decoder = blocked()
        data = jsonl(line("a")).strip()
        create(store, line("a"))
        async with working(store, core):
            await until(lambda: decoder.num_waiting)
            assert core.num_held_bytes == len(data) + parsed_bytes(data)
        assert core.num_held_bytes == 0

    run(scenario())


HOSTILE_BODIES = {
    "depth": '{"image": 1, "task": ' + "[" * 900 + "]" * 900 + "}",
    "surrogate": r'{"image": "IMAGE", "task": "\ud800"}',
    "surrogate name": r'{"image": 1, "\ud800": 1}',
    "surrogate label": r'{"image": "IMAGE", "task": "open_vocabulary_detection", "labels": ["\ud800"]}',
    "integer": '{"image": "IMAGE", "task": "ocr", "seed": 1' + "0" * 400 + "}",
    "infinity": '{"image": "IMAGE", "task": "ocr", "temperature": 1e400}',
    "minus infinity": '{"image": "IMAGE", "task": "ocr", "top_p": -1e400}',
    "region": '{"image": "IMAGE", "task": "region_description", "region": [0, 0, 1e400, 1]}',
}


def test_a_hostile_body_fails_its_own_request(store: Store) -> None:
    frame = '{"custom_id": "%s", "method": "POST", "url": "/v1/predict", "body": %s}\n'
    bodies = {name: body.replace("IMAGE", OCR["image"]) for name, body in HOSTILE_BODIES.items()}
    content = "".join(frame % item for item in bodies.items()).encode()
    batch = completed(store, create(store, line("first"), content, line("last")))
    assert output(store.of("me"), batch.output_file_id).keys() == {"first", "last"}
    failed = output(store.of("me"), batch.error_file_id)
    assert {name: each["response"]["status_code"] for name, each in failed.items()} == dict.fromkeys(bodies, 400)


def test_a_defect_outside_of_a_request_fails_the_batch(store: Store) -> None:
    """Here the file is another than the one that was checked."""
    batch = create(store, line("a"), line("b"))
    mark_begun(store, batch, 2)
    store.of("me").content(batch.input_file_id).write_bytes(b"{}\n{}\n")
    failed = completed(store, batch)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert [error.code for error in failed.errors.data] == ["internal"]


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


def test_api_keys_take_turns(store: Store) -> None:
    async def scenario() -> None:
        first = create(store, *(line(str(number)) for number in range(100)), owner="first")
        second = create(store, line("a"), owner="second")
        async with working(store, make_core()):
            await until(lambda: now(store, second, "second").status == "completed")
            assert now(store, first, "first").status == "in_progress"

    run(scenario())


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


def test_a_disk_that_fails_delays_a_batch(store: Store) -> None:
    async def scenario() -> None:
        batch = create(store, *(line(str(number)) for number in range(20)))
        files = store.of("me").files
        async with working(store, make_core()):
            await until(lambda: now(store, batch).request_counts.completed)
            files.chmod(0o500)
            state = store.of("me").state(batch.id)
            path = store.of("me").content(state.output_id)
            path.rename(path.with_suffix(".away"))
            path.mkdir()  # cannot be appended to
            await asyncio.sleep(0.1)
            path.rmdir()
            path.with_suffix(".away").rename(path)
            files.chmod(0o700)
            await until(ends(store, batch))
        assert len(output(store.of("me"), now(store, batch).output_file_id)) == 20

    run(scenario())


def test_a_batch_that_cannot_be_read_does_not_stop_the_others(store: Store) -> None:
    broken, batch = create(store, line("a"), owner="other"), create(store, line("a"))
    (store.of("other").batches / f"{broken.id}.json").write_text("{")
    assert completed(store, batch).status == "completed"


def test_a_defect_delays_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [RuntimeError("a defect")]

    def fails_once(*_: object) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(Store, "remove_expired", fails_once)
    assert completed(store, create(store, line("a"))).status == "completed"
    assert not failures


def test_one_worker_runs_a_store(store: Store) -> None:
    """POSIX locks are those of a process: here the first one has to be another."""
    hold = "file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    code = f"import fcntl, sys; {hold}"

    async def scenario() -> None:
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, str(store.path / "lock")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        batch = create(store, line("a"))
        async with working(store, make_core()):
            await asyncio.sleep(0.1)
            assert now(store, batch).status == "validating"
            holder.kill()
            await until(ends(store, batch))
        await holder.wait()

    run(scenario())
