"""SIGTERM: not ready at once, new requests are refused, accepted ones answered; then exit 0 without
leftovers.
"""

import os
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.endless_models import endless_models
from tests.support.export_cli import ModelStore
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.service_metrics import samples, total
from tests.support.waiting import wait_until

MODEL = "florence-2-mini"
NUM_TOKENS = 160
NUM_BEAMS = 4  # together these answers take some seconds
# Some requests are queued in the gateway, and none finds its image encoded.
SETTINGS = {"DIPTYCH_DECODER_MAX_BATCH_SIZE": "8", "DIPTYCH_VISION_CACHE_MB": "0"}
NUM_TURNS = 12  # half as many again as the decoder writes at once
FORM = {"task": "captioning", "max_new_tokens": str(NUM_TOKENS)}
NUM_WHOLE = 16
STOP_S = 60  # far above what the answers take


@pytest.fixture(scope="module")
def endless(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    return endless_models(exported, tmp_path_factory.mktemp("endless") / "bentoml")


@dataclass(frozen=True, slots=True)
class Stopping:
    """A service that was told to stop, and whose runner stands still."""

    service: RunningService
    processes: Sequence[int]  # all but the supervisor


@pytest.fixture(scope="module", autouse=True)
def stopping(endless: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopping]:
    """Stops while the other tests of this file run."""
    log = tmp_path_factory.mktemp("stopping") / "service.log"
    settings = {"DIPTYCH_REQUEST_TIMEOUT_S": "1", "DIPTYCH_MODELS": MODEL}
    with forked_service(endless.home, log, **settings) as service:
        processes = descendants(service.process.pid)
        os.kill(service.parts()[f"{MODEL}-runner"], signal.SIGSTOP)
        service.process.send_signal(signal.SIGTERM)
        yield Stopping(service, processes)


@pytest.fixture
def service(endless: ModelStore, tmp_path: Path) -> Iterator[RunningService]:
    with forked_service(endless.home, tmp_path / "service.log", **SETTINGS) as running:
        yield running


def ask(service: RunningService, **fields: str) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/predict",
        data=FORM | fields,
        files={"image": scene_png()},
        timeout=STOP_S,
    )


def call(channel: grpc.Channel) -> Any:
    request = pb.PredictRequest(
        image=scene_png(), task="captioning", max_new_tokens=NUM_TOKENS, num_beams=NUM_BEAMS
    )
    return VisionStub(channel).Predict.future(request, timeout=STOP_S)


def num_beyond_turns(service: RunningService) -> float:
    """Return how many more have come than have turns at once: those that wait, and those that gave
    theirs up.
    """
    found = samples(service)
    num_answered = total(found, "diptych_requests_total", status="ok")
    return total(found, "diptych_queue_depth", stage="admission") + num_answered


def is_serving(channel: grpc.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status = stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def test_what_was_accepted_is_answered_and_the_rest_refused(service: RunningService) -> None:
    # what forks the processes has no threads
    assert len(os.listdir(f"/proc/{service.process.pid}/task")) == 1
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(NUM_WHOLE + 1))
        channel = stack.enter_context(grpc.insecure_channel(service.grpc_address))
        wait_until(lambda: is_serving(channel))
        whole = [pool.submit(ask, service, num_beams=str(NUM_BEAMS)) for _ in range(NUM_WHOLE)]
        stream = pool.submit(ask, service, num_beams="1", stream="true")
        called = call(channel)
        wait_until(lambda: num_beyond_turns(service) == NUM_WHOLE + 2 - NUM_TURNS)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not service.is_ready())
        assert_refuses(service, channel)
        service.process.send_signal(signal.SIGTERM)  # a second one changes nothing
        assert not all(answer.done() for answer in whole)
        assert_answered(whole, stream)
        assert called.result().usage.generated_tokens == NUM_TOKENS
    assert service.process.wait(STOP_S) == 0
    assert service.log.read_text().count("ended with status") == 0


def assert_refuses(service: RunningService, channel: grpc.Channel) -> None:
    refused = ask(service)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["connection"] == "close"
    assert not is_serving(channel)
    with pytest.raises(grpc.RpcError) as caught:
        call(channel).result()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def assert_answered(
    whole: "list[Future[httpx.Response]]", stream: "Future[httpx.Response]"
) -> None:
    for answer in whole:
        assert answer.result().json()["usage"]["generated_tokens"] == NUM_TOKENS
    name, result = parse_events(stream.result().text)[-1]
    assert (name, result["usage"]["generated_tokens"]) == ("result", NUM_TOKENS)


def test_what_does_not_end_in_time_is_killed(stopping: Stopping) -> None:
    assert stopping.service.process.wait(STOP_S) == 0
    assert not any(map(is_alive, stopping.processes))
    assert re.search(f"killed after .* s: {MODEL}-runner", stopping.service.log.read_text())
