"""A client that goes, a deadline that passes and a gateway that dies free the decoder's slots at
once.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from tests.support.endless_models import endless_models
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import (
    GATEWAY,
    RunningService,
    forked_service,
    form_of,
    post_form,
)
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

# Tokens of every complete answer: the positions of the embedded models allow it.
NUM_TOKENS = 280
NUM_BEAMS = 8  # so that an answer takes far longer than scraping the metrics
FORM: dict[str, Any] = {"task": "captioning", "max_new_tokens": NUM_TOKENS, "num_beams": NUM_BEAMS}
DEADLINE_S = 0.3  # too little for an answer
# Tokens of a complete answer; how many of them a cancelled one has depends on the machine's load.
COMPLETE = (NUM_TOKENS - 1) * NUM_BEAMS


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("endless")
    store = endless_models(exported, folder / "bentoml")
    with forked_service(store.home, folder / "service.log") as running:
        compare(running)  # so that what follows is of warm models and a cached image
        yield running


def compare(service: RunningService, **headers: str) -> Any:
    with service.client() as client:
        return post_form(client, "/v1/compare", scene_png(), FORM, headers).json()


def num_live(service: RunningService) -> float:
    return metric(service, "diptych_live_sequences")


def num_gone(service: RunningService) -> float:
    return metric(service, "diptych_requests_total", status="client_gone")


def num_written(service: RunningService) -> list[float]:
    name = "diptych_batch_size_sum"
    return [metric(service, name, model=model, stage="decode") for model in EMBEDDED]


@contextmanager
def cut_short(service: RunningService, num_tokens: int = COMPLETE) -> Iterator[None]:
    """Check that the answers of the block are not written to their end."""
    before = num_written(service)
    yield
    wait_until(lambda: num_live(service) == 0)
    for first, last in zip(before, num_written(service), strict=True):
        assert last - first < num_tokens


@asynccontextmanager
async def request_in_progress(
    service: RunningService, path: str, num_sequences: int
) -> "AsyncIterator[asyncio.Future[httpx.Response]]":
    """Yield a request of which sequences are being written, and cancel it."""
    form = form_of(FORM)
    files = {"image": scene_png()}
    async with httpx.AsyncClient(timeout=60) as client:
        request = asyncio.ensure_future(client.post(service.url + path, data=form, files=files))
        async with asyncio.timeout(30):
            while await asyncio.to_thread(num_live, service) < num_sequences:
                assert not request.done()
        yield request
        request.cancel()


def test_awaited_answer_is_complete(service: RunningService) -> None:
    before = num_written(service)
    answers = compare(service)["answers"]
    assert [answer["usage"]["generated_tokens"] for answer in answers] == [NUM_TOKENS] * 2
    for first, last in zip(before, num_written(service), strict=True):
        assert last - first >= COMPLETE


@pytest.mark.parametrize(("path", "num_sequences"), [("/v1/predict", 1), ("/v1/compare", 2)])
def test_disconnection_frees_the_slots(
    service: RunningService, path: str, num_sequences: int
) -> None:
    async def leave() -> None:
        async with request_in_progress(service, path, num_sequences):
            pass

    gone = num_gone(service)
    with cut_short(service):
        asyncio.run(leave())
    wait_until(lambda: num_gone(service) == gone + 1)


def test_deadline_frees_the_slots(service: RunningService) -> None:
    with cut_short(service):
        body = compare(service, **{"X-Deadline-Ms": f"{DEADLINE_S * 1000:.0f}"})
    answers = body.get("answers", [body])  # a busy machine may not have read the image by then
    assert {answer["error"]["code"] for answer in answers} == {"deadline_exceeded"}


@pytest.mark.parametrize("timeout_s", [60, DEADLINE_S], ids=["cancelled", "deadline"])
def test_ended_grpc_call_frees_the_slots(service: RunningService, timeout_s: float) -> None:
    request = pb.CompareRequest(image=scene_png(), **FORM)
    counted = metric(service, "diptych_requests_total", api="grpc")
    with cut_short(service), service.vision() as vision:
        call = vision.Compare.future(request, timeout=timeout_s)
        if timeout_s > DEADLINE_S:
            wait_until(lambda: num_live(service) == len(EMBEDDED))
            call.cancel()
        try:
            codes = {answer.error.code for answer in call.result().answers}
        except (grpc.RpcError, grpc.FutureCancelledError):  # the client's clock was the first
            codes = set()
        assert codes <= {"deadline_exceeded"}
        wait_until(lambda: metric(service, "diptych_requests_total", api="grpc") > counted)


@pytest.mark.parametrize("model", EMBEDDED)
@pytest.mark.parametrize("api", ["rest", "grpc"])
def test_left_stream_frees_its_slot(service: RunningService, api: str, model: str) -> None:
    form = FORM | {"num_beams": 1, "model": model}
    gone = num_gone(service)
    with cut_short(service, NUM_TOKENS - 1):
        if api == "rest":
            with service.chunks(**form) as chunks:
                assert next(chunks).startswith("event: token")
        else:
            with service.vision() as vision:
                call: Any = vision.PredictStream(pb.PredictRequest(image=scene_png(), **form))
                assert next(call).text
                call.cancel()
        wait_until(lambda: num_gone(service) == gone + 1)


async def test_killed_gateway_frees_the_slots(service: RunningService) -> None:
    """The last of this file."""

    before = num_written(service)
    async with request_in_progress(service, "/v1/compare", len(EMBEDDED)) as request:
        service.send_signal(GATEWAY, signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            await request
    service.wait_until_ready()
    for first, last in zip(before, num_written(service), strict=True):
        assert last - first < COMPLETE
