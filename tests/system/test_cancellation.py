"""A client that goes, a deadline that passes and a gateway that dies free the decoder's slots at
once.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import (
    GATEWAY,
    RunningService,
    forked_service,
    form_of,
    post_form,
)
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from tests.system.service_metrics import metric

# Tokens of every complete answer: the positions of the embedded models allow it.
NUM_TOKENS = 280
NUM_BEAMS = 8  # so that an answer takes far longer than scraping the metrics
FORM: dict[str, Any] = {"task": "captioning", "max_new_tokens": NUM_TOKENS, "num_beams": NUM_BEAMS}
DEADLINE_S = 0.3  # too little for an answer
# Tokens of a complete answer; how many of them a cancelled one has depends on the machine's load.
COMPLETE = (NUM_TOKENS - 1) * NUM_BEAMS


@pytest.fixture(scope="module")
def service(endless: ModelStore, folder: Path) -> Iterator[RunningService]:
    with forked_service(endless.home, folder / "service.log") as running:
        with running.client() as client:  # later requests have warm models and a cached image
            answers = post_form(client, "/v1/compare", scene_png(), FORM).json()["answers"]
        assert [answer["usage"]["generated_tokens"] for answer in answers] == [NUM_TOKENS] * 2
        yield running


def num_live(service: RunningService) -> float:
    return metric(service, "diptych_live_sequences")


def num_written(service: RunningService) -> list[float]:
    name = "diptych_batch_size_sum"
    return [metric(service, name, model=model, stage="decode") for model in EMBEDDED]


@contextmanager
def cut_short(service: RunningService, num_gone: int, num_tokens: int = COMPLETE) -> Iterator[None]:
    """Check that no answer is written to its end, that all slots are free after the block, and that
    clients were counted as gone.
    """
    gone = partial(metric, service, "diptych_requests_total", status="client_gone")
    expected = gone() + num_gone
    before = num_written(service)
    yield
    wait_until(lambda: gone() >= expected)
    wait_until(lambda: num_live(service) == 0)
    for first, last in zip(before, num_written(service), strict=True):
        assert last - first < num_tokens


@asynccontextmanager
async def comparison(service: RunningService) -> "AsyncIterator[asyncio.Future[httpx.Response]]":
    """Yield a request of which both answers are being written, and cancel it."""
    async with httpx.AsyncClient(timeout=60) as client:
        post = client.post(
            f"{service.url}/v1/compare", data=form_of(FORM), files={"image": scene_png()}
        )
        request = asyncio.ensure_future(post)
        async with asyncio.timeout(30):
            while await asyncio.to_thread(num_live, service) < len(EMBEDDED):
                assert not request.done()
        yield request
        request.cancel()


async def test_disconnection_frees_the_slots(service: RunningService) -> None:
    with cut_short(service, 1):
        async with comparison(service):
            pass


@pytest.mark.parametrize("timeout_s", [60, DEADLINE_S], ids=["cancelled", "deadline"])
def test_ended_grpc_call_frees_the_slots(service: RunningService, timeout_s: float) -> None:
    request = pb.CompareRequest(image=scene_png(), **FORM)
    counted = metric(service, "diptych_requests_total", api="grpc")
    with cut_short(service, 0), service.vision() as vision:
        call = vision.Compare.future(request, timeout=timeout_s)
        if timeout_s > DEADLINE_S:
            wait_until(lambda: num_live(service) == len(EMBEDDED))
            call.cancel()
        wait_until(lambda: metric(service, "diptych_requests_total", api="grpc") > counted)


@pytest.mark.parametrize("api", ["rest", "grpc"])
def test_left_stream_frees_its_slot(service: RunningService, api: str) -> None:
    form = FORM | {"num_beams": 1}
    with cut_short(service, 1, NUM_TOKENS - 1):
        if api == "rest":
            with service.chunks(**form) as chunks:
                assert next(chunks).startswith("event: token")
        else:
            with service.vision() as vision:
                call: Any = vision.PredictStream(pb.PredictRequest(image=scene_png(), **form))
                assert next(call).text
                call.cancel()


async def test_killed_gateway_frees_the_slots(service: RunningService) -> None:
    """The last of this file."""
    with cut_short(service, 0):
        async with comparison(service) as request:
            service.send_signal(GATEWAY, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                await request
        service.wait_until_ready()
