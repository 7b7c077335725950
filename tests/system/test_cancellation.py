"""A client that goes, a deadline that passes and a gateway that dies free the decoder's slots at
once.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.endless_models import endless_models
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

# Tokens of every complete answer: the positions of the embedded models allow it.
NUM_TOKENS = 280
NUM_BEAMS = 8  # so that an answer takes far longer than scraping the metrics
FORM = {"task": "captioning", "max_new_tokens": str(NUM_TOKENS), "num_beams": str(NUM_BEAMS)}
DEADLINE_S = 0.3  # too little for an answer
# What a complete answer writes; how much of it a cancelled one has depends on the machine's load.
COMPLETE = (NUM_TOKENS - 1) * NUM_BEAMS


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("endless")
    store = endless_models(exported, folder / "bentoml")
    with forked_service(store.home, folder / "service.log") as running:
        ask(running, "compare")  # so that what follows is of warm models and a cached image
        yield running


def ask(service: RunningService, endpoint: str, **headers: str) -> httpx.Response:
    files = {"image": scene_png()}
    return httpx.post(
        f"{service.url}/v1/{endpoint}", data=FORM, files=files, headers=headers, timeout=60
    )


def num_written(service: RunningService) -> dict[str, float]:
    return {
        model: metric(service, "diptych_batch_size_sum", model=model, stage="decode")
        for model in EMBEDDED
    }


def num_live(service: RunningService) -> float:
    return metric(service, "diptych_live_sequences")


async def ask_and_leave(service: RunningService, endpoint: str, num_sequences: int) -> None:
    """Close the connection as soon as the sequences are being written."""
    async with httpx.AsyncClient(timeout=60) as client:
        post = client.post(f"{service.url}/v1/{endpoint}", data=FORM, files={"image": scene_png()})
        asking = asyncio.ensure_future(post)
        async with asyncio.timeout(30):
            while await asyncio.to_thread(num_live, service) < num_sequences:
                assert not asking.done()
        asking.cancel()


def errors_of(call: "grpc.Future[pb.Comparison]") -> set[str]:
    """Return how each model's answer ended; nothing if the call ended before (the client's clock
    was the first).
    """
    try:
        return {answer.error.code for answer in call.result().answers}
    except (grpc.RpcError, grpc.FutureCancelledError):
        return set()


def test_an_answer_that_is_waited_for_is_written_to_its_end(service: RunningService) -> None:
    before = num_written(service)
    answers = ask(service, "compare").json()["answers"]
    assert [answer["usage"]["generated_tokens"] for answer in answers] == [NUM_TOKENS] * len(
        EMBEDDED
    )
    after = num_written(service)
    assert all(after[model] - before[model] >= COMPLETE for model in EMBEDDED)


@pytest.mark.parametrize(("endpoint", "num_sequences"), [("predict", 1), ("compare", 2)])
def test_a_client_that_goes_frees_its_slots(
    service: RunningService, endpoint: str, num_sequences: int
) -> None:
    before = num_written(service)
    gone = metric(service, "diptych_requests_total", status="client_gone")
    asyncio.run(ask_and_leave(service, endpoint, num_sequences))
    wait_until(lambda: num_live(service) == 0)
    after = num_written(service)
    assert all(after[model] - before[model] < COMPLETE for model in EMBEDDED)
    assert metric(service, "diptych_requests_total", status="client_gone") == gone + 1


def test_a_deadline_that_passes_frees_the_slots(service: RunningService) -> None:
    before = num_written(service)
    told = ask(service, "compare", **{"X-Deadline-Ms": f"{DEADLINE_S * 1000:.0f}"}).json()
    answers = told.get("answers", [told])  # a busy machine may not have read the image by then
    assert {answer["error"]["code"] for answer in answers} == {"deadline_exceeded"}
    wait_until(lambda: num_live(service) == 0)
    after = num_written(service)
    assert all(after[model] - before[model] < COMPLETE for model in EMBEDDED)


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_grpc_call_that_ends_early_frees_its_slots(service: RunningService, how: str) -> None:
    request = pb.CompareRequest(
        image=scene_png(), task="captioning", max_new_tokens=NUM_TOKENS, num_beams=NUM_BEAMS
    )
    before = num_written(service)
    gone = metric(service, "diptych_requests_total", api="grpc")
    with grpc.insecure_channel(service.grpc_address) as channel:
        grpc.channel_ready_future(channel).result(30)
        call = VisionStub(channel).Compare.future(
            request, timeout=60 if how == "cancelled" else DEADLINE_S
        )
        if how == "cancelled":
            wait_until(lambda: num_live(service) == len(EMBEDDED))
            call.cancel()
        assert errors_of(call) <= {"deadline_exceeded"}
        wait_until(lambda: metric(service, "diptych_requests_total", api="grpc") > gone)
    wait_until(lambda: num_live(service) == 0)
    after = num_written(service)
    assert all(after[model] - before[model] < COMPLETE for model in EMBEDDED)


def leave_rest_stream(service: RunningService, model: str) -> None:
    data = {**FORM, "num_beams": "1", "model": model, "stream": "true"}
    with service.client().stream(
        "POST", "/v1/predict", data=data, files={"image": scene_png()}
    ) as response:
        assert next(response.iter_text()).startswith("event: token")


def leave_grpc_stream(service: RunningService, model: str) -> None:
    request = pb.PredictRequest(
        image=scene_png(), task="captioning", model=model, max_new_tokens=NUM_TOKENS, num_beams=1
    )
    with grpc.insecure_channel(service.grpc_address) as channel:
        call = VisionStub(channel).PredictStream(request, timeout=60)
        assert next(call).text
        call.cancel()


@pytest.mark.parametrize("model", EMBEDDED)
@pytest.mark.parametrize(
    ("leave", "api"), [(leave_rest_stream, "rest"), (leave_grpc_stream, "grpc")]
)
def test_a_client_that_leaves_a_stream_frees_its_slot(
    service: RunningService, leave: Callable[[RunningService, str], None], api: str, model: str
) -> None:
    labels = {"api": api, "status": "client_gone"}
    before = num_written(service)
    gone = metric(service, "diptych_requests_total", **labels)
    leave(service, model)
    wait_until(lambda: metric(service, "diptych_requests_total", **labels) == gone + 1)
    wait_until(lambda: num_live(service) == 0)
    assert num_written(service)[model] - before[model] < NUM_TOKENS - 1


def test_a_gateway_that_dies_frees_the_slots(service: RunningService) -> None:
    async def kill_while_writing() -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            post = client.post(f"{service.url}/v1/compare", data=FORM, files={"image": scene_png()})
            asking = asyncio.ensure_future(post)
            async with asyncio.timeout(30):
                while await asyncio.to_thread(num_live, service) < len(EMBEDDED):
                    assert not asking.done()
            os.kill(service.parts()["diptych"], signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                await asking

    before = num_written(service)
    asyncio.run(kill_while_writing())
    service.wait_until_ready()
    after = num_written(service)
    assert all(after[model] - before[model] < COMPLETE for model in EMBEDDED)
