"""Batches in a store, and workers that run them over the real core with fake runners."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.admission.traffic_gaps import TrafficGaps
from service.batches.store import BatchState, KeyFolder, Store
from service.batches.wire import ENDED, Batch, BatchRequest
from service.batches.worker import BatchWorker
from service.inference.core import Core
from service.settings import Settings
from tests.support.batch_lines import PREDICT, jsonl
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, make_core

SETTINGS = Settings(request_timeout_s=60)


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


def mark_begun(store: Store, batch: Batch, num_lines: int) -> BatchState:
    """Store a batch as an earlier process does that has checked its file."""
    state = store.of("me").state(batch.id)
    state.batch.status = "in_progress"
    state.batch.in_progress_at = state.batch.created_at
    state.batch.request_counts.total = num_lines
    store.of("me").save(state)
    return state
