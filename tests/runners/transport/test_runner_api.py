"""The routes of a runner: each call reads features for the adapter that its sequences name."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest

from runners.encoder.features_cache import CachedFeatures
from runners.model_worker import ModelWorker
from runners.transport.runner_api import RunnerApi
from wire.pixels import IMAGE_KEY_HEADER, Pixels
from wire.runner_messages import Failed, Outcomes, SequenceSpec, WriteCall

FAILED = Failed(code="internal", message="this worker only records")


class RecordingWorker(ModelWorker):
    """Records the adapters for which features are read."""

    def __init__(self) -> None:
        self.image_shape_hwc = (2, 2, 3)
        self.adapters_read: list[str | None] = []

    async def features(
        self,
        image_key: str,  # noqa: ARG002  # the interface has it
        pixels: Pixels | None,  # noqa: ARG002
        adapter: str | None,
    ) -> CachedFeatures | Failed:
        self.adapters_read.append(adapter)
        return FAILED


def posted(worker: RecordingWorker, *adapters: str | None) -> httpx.Response:
    """Post a call with a sequence for each of `adapters`."""
    specs = [
        SequenceSpec(segments=[("caption", False)], adapter=adapter, timeout_s=1)
        for adapter in adapters
    ]
    api = RunnerApi()
    api.start(worker)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://runner") as http:
            body = WriteCall(sequences=specs).model_dump_json()
            return await http.post("/write", content=body, headers={IMAGE_KEY_HEADER: "a"})

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
