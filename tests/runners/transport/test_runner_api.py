"""The routes of a runner: each call reads features for the adapter that its sequences name."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest
from starlette.types import Message

from runners.encoder.features_cache import CachedFeatures
from runners.model_worker import ModelWorker
from runners.runner_api import RunnerApi
from wire.pixels import IMAGE_KEY_HEADER, Pixels
from wire.runner_messages import (
    Failed,
    FoundFeatures,
    Outcomes,
    SequenceEnd,
    SequenceSpec,
    WriteCall,
)

FAILED = Failed(code="internal", message="this worker only records")


class RecordingWorker(ModelWorker):
    """Records the adapters for which features are read."""

    def __init__(self, features: Failed | None = FAILED) -> None:
        self.image_shape_hwc = (2, 2, 3)
        self._features = features
        self.adapters_read: list[str | None] = []

    async def features(
        self,
        image_key: str,  # noqa: ARG002  # the interface has it
        pixels: Pixels | None,  # noqa: ARG002
        adapter: str | None,
    ) -> CachedFeatures | Failed | None:
        self.adapters_read.append(adapter)
        return self._features


def body_of_call(*adapters: str | None) -> str:
    """Return a call with a sequence for each of `adapters`."""
    specs = [
        SequenceSpec(segments=[("caption", False)], adapter=adapter, timeout_s=1)
        for adapter in adapters
    ]
    return WriteCall(sequences=specs).model_dump_json()


def posted(worker: RecordingWorker, *adapters: str | None) -> httpx.Response:
    """Post a call with a sequence for each of `adapters`."""
    api = RunnerApi()
    api.start(worker)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://runner") as http:
            headers = {IMAGE_KEY_HEADER: "a"}
            return await http.post("/write", content=body_of_call(*adapters), headers=headers)

    return asyncio.run(post())


@pytest.mark.parametrize("adapters", [(None, None), ("tuned", "tuned"), ()], ids=str)
def test_a_call_reads_the_features_of_its_adapter(adapters: Sequence[str | None]) -> None:
    worker = RecordingWorker()
    response = posted(worker, *adapters)
    assert response.status_code == 200
    assert len(Outcomes.model_validate_json(response.content).outcomes) == len(adapters)
    assert worker.adapters_read == list(adapters[:1] or [None])


def test_a_call_with_several_adapters_is_refused() -> None:
    worker = RecordingWorker()
    response = posted(worker, "tuned", None)
    assert response.status_code == 400
    assert response.text == "the sequences name 2 adapters; all must name the same one, or all none"
    assert not worker.adapters_read


def test_a_call_without_pixels_or_cached_features_is_answered_by_404() -> None:
    response = posted(RecordingWorker(features=None), None)
    assert response.status_code == 404
    assert response.text == (
        "no features are cached under this image key; repeat the call with pixels"
    )


def test_each_event_of_a_stream_is_one_message_with_a_line_and_an_empty_one_ends_it() -> None:
    api = RunnerApi()
    api.start(RecordingWorker())
    request: Message = {"type": "http.request", "body": body_of_call(None, None).encode()}
    sent: list[Message] = []

    async def stream() -> None:
        received = [request]

        async def receive() -> Message:
            return received.pop() if received else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(IMAGE_KEY_HEADER.lower().encode(), b"a")]
        scope = {"type": "http", "method": "POST", "path": "/stream", "headers": headers}
        await api.app()(scope, receive, send)

    asyncio.run(asyncio.wait_for(stream(), timeout=60))
    events = (
        FoundFeatures(outcome="miss"),
        SequenceEnd(index=0, outcome=FAILED),
        SequenceEnd(index=1, outcome=FAILED),
    )
    start, *bodies = sent
    assert start["status"] == 200
    assert start["headers"] == [(b"content-type", b"application/x-ndjson")]
    assert [message["body"] for message in bodies] == [
        *(event.model_dump_json().encode() + b"\n" for event in events),
        b"",
    ]
    assert [message["more_body"] for message in bodies] == [True, True, True, False]
