"""Batches over the real core with fake runners: order, errors, cancellation, expiry, and a process that ends early."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.admission.traffic_gaps import TrafficGaps
from service.batches import dispatcher, worker
from service.batches.store import KeyFolder, Store
from service.batches.wire import ENDED, Batch, BatchRequest
from service.batches.worker import BatchWorker
from service.inference.core import Core
from service.settings import Settings
from tests.support.batch_lines import CHAT, CHAT_BODY, PREDICT, jsonl, line
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, context, make_core
from tests.support.rest_client import OCR, SMALL_PNG

SETTINGS = Settings(request_timeout_s=5)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and save more often than a service does."""
    for name in ("_SCAN_S", "_SAVE_S", "RETRY_S"):
        monkeypatch.setattr(dispatcher, name, 0.01)
    for name in ("_LOCK_S", "RETRY_S"):
        monkeypatch.setattr(worker, name, 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "batches")
    store.prepare()
    return store


def create(store: Store, *lines: object, owner: str = "me", endpoint: Any = PREDICT) -> Batch:
    folder = store.of(owner)
    upload = store.uploads / "upload"
    upload.write_bytes(jsonl(*lines))
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


def ends(store: Store, batch: Batch) -> Callable[[], bool]:
    return lambda: now(store, batch).status in ENDED


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


def test_a_process_that_ends_early_leaves_the_rest_to_the_next(store: Store) -> None:
    batch = create(store, *(line(str(number)) for number in range(200)))

    async def first() -> None:
        async with working(store, make_core()):
            await until(lambda: now(store, batch).request_counts.completed > 2)

    run(first())
    assert now(store, batch).status == "in_progress"
    assert 0 < now(store, batch).request_counts.completed < 200
    core, decoder = blocked()

    async def second() -> None:
        release(decoder)
        async with working(store, core):
            await until(ends(store, batch))

    run(second())
    assert len(output(store.of("me"), now(store, batch).output_file_id)) == 200
    assert len(decoder.specs) < 200


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


def test_api_keys_take_turns(store: Store) -> None:
    async def scenario() -> None:
        first = create(store, *(line(str(number)) for number in range(100)), owner="first")
        second = create(store, line("a"), owner="second")
        async with working(store, make_core()):
            await until(lambda: now(store, second, "second").status == "completed")
            assert now(store, first, "first").status == "in_progress"

    run(scenario())


def test_an_online_request_goes_first_and_the_batch_goes_on(store: Store) -> None:
    async def scenario() -> None:
        gaps = TrafficGaps()
        core, decoder = blocked(gaps)
        batch = create(store, *(line(str(number)) for number in range(3)))
        async with working(store, core, gaps):
            await until(lambda: decoder.specs)
            online = asyncio.create_task(core.predict(SMALL_PNG, {"task": "ocr"}, context()))
            await until(lambda: decoder.num_cancelled)
            await until(lambda: len(decoder.specs) == 2)  # that of the online request
            release(decoder)
            await online
            await until(ends(store, batch))
        assert len(output(store.of("me"), now(store, batch).output_file_id)) == 3

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
