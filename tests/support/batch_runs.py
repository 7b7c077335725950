"""Batches in a store, and workers that run them over the real core with fake runners."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.admission.places import TrafficGaps
from service.batches.store import Store, new_id
from service.batches.wire import ENDED, Batch, BatchRequest
from service.batches.worker import BatchWorker
from service.inference.core import Core
from service.settings import Settings
from tests.support.core_calls import until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, make_core
from tests.support.rest_client import OCR

SETTINGS = Settings(request_timeout_s=60)
PREDICT: Any = "/v1/predict"
CHAT: Any = "/v1/chat/completions"
CHAT_PARTS = [
    {"type": "text", "text": "<OCR>"},
    {"type": "image_url", "image_url": {"url": OCR["image"]}},
]
CHAT_BODY = {"model": FLORENCE_ID, "messages": [{"role": "user", "content": CHAT_PARTS}]}


def line(
    custom_id: object = "a", url: str = PREDICT, body: object = OCR, **fields: Any
) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **fields}


def jsonl(*lines: object) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in lines)


def add_file(store: Store, content: bytes, owner: str = "me", kept_s: int = 3600) -> str:
    file_id = new_id("file-")
    store.content(file_id).write_bytes(content)
    return store.add_file(owner, file_id, "input.jsonl", kept_s).id


def create(store: Store, *lines: object, owner: str = "me", endpoint: Any = PREDICT) -> Batch:
    content = b"".join(part if isinstance(part, bytes) else jsonl(part) for part in lines)
    request = BatchRequest(
        input_file_id=add_file(store, content, owner), endpoint=endpoint, completion_window="24h"
    )
    return store.create_batch(owner, request)


@asynccontextmanager
async def working(store: Store, core: Core, gaps: TrafficGaps | None = None) -> AsyncIterator[None]:
    worker = BatchWorker(store, core, gaps or TrafficGaps(), SETTINGS)
    worker.start()
    try:
        yield
    finally:
        await worker.stop()


def now(store: Store, batch: Batch, owner: str = "me") -> Batch:
    return store.batch(owner, batch.id)


def ends(store: Store, *batches: Batch, owner: str = "me") -> Callable[[], bool]:
    return lambda: all(now(store, batch, owner).status in ENDED for batch in batches)


async def completed(store: Store, batch: Batch) -> Batch:
    async with working(store, make_core()):
        await until(ends(store, batch))
    return now(store, batch)


def output(store: Store, file_id: str | None, owner: str = "me") -> dict[str, Any]:
    if file_id is None:
        return {}
    content = store.content(file_id).read_bytes()
    assert store.file(owner, file_id).bytes == len(content)
    lines = [json.loads(text) for text in content.splitlines()]
    by_id = {document["custom_id"]: document for document in lines}
    assert len(by_id) == len(lines)
    return by_id


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
