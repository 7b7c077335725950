"""SIGTERM: not ready at once, new requests are refused, accepted ones answered; then exit 0 without
leftovers.
"""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.export_cli import ModelStore
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService, forked_service, parse_events
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from tests.system.service_metrics import samples, total

MODEL = "florence-2-mini"
RUNNER = f"{MODEL}-runner"
NUM_TOKENS = 160
NUM_BEAMS = 4  # together these answers take some seconds
# Some requests are queued in the gateway, and none finds its image encoded.
SETTINGS = {"DIPTYCH_DECODER_MAX_BATCH_SIZE": "8", "DIPTYCH_VISION_CACHE_MB": "0"}
NUM_RUNNING = 12  # half as many again as the decoder writes at once
FORM: dict[str, Any] = {"task": "captioning", "max_new_tokens": NUM_TOKENS}
NUM_WHOLE = 16
STOP_S = 60  # far above what the answers take


@pytest.fixture(scope="module", autouse=True)
def stopping(endless: ModelStore, folder: Path) -> Iterator[tuple[RunningService, list[int]]]:
    """A service that stops while the other tests of this file run, and whose runner stands still;
    and its processes.
    """
    settings = {"DIPTYCH_REQUEST_TIMEOUT_S": "1", "DIPTYCH_MODELS": MODEL}
    with forked_service(endless.home, folder / "log", **settings) as service:
        processes = descendants(service.process.pid)
        service.send_signal(RUNNER, signal.SIGSTOP)
        service.process.send_signal(signal.SIGTERM)
        yield service, processes


def num_queued_or_answered(service: RunningService) -> float:
    measured = samples(service)
    num_answered = total(measured, "diptych_requests_total", status="ok")
    return total(measured, "diptych_queue_depth", stage="admission") + num_answered


def assert_refusing(service: RunningService, channel: grpc.Channel) -> None:
    refused = service.predict(**FORM)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert refused.headers["connection"] == "close"
    health: Any = health_pb2_grpc.HealthStub(channel)
    status = health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        VisionStub(channel).Predict(pb.PredictRequest(), timeout=STOP_S)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_accepted_requests_are_answered(endless: ModelStore, tmp_path: Path) -> None:
    request = pb.PredictRequest(image=scene_png(), num_beams=NUM_BEAMS, **FORM)
    with ExitStack() as stack:
        log = tmp_path / "service.log"
        service = stack.enter_context(forked_service(endless.home, log, **SETTINGS))
        # what forks the processes has no threads
        assert len(os.listdir(f"/proc/{service.process.pid}/task")) == 1
        pool = stack.enter_context(ThreadPoolExecutor(NUM_WHOLE + 1))
        channel = stack.enter_context(grpc.insecure_channel(service.grpc_address))
        vision: Any = VisionStub(channel)
        ask: Any = partial(pool.submit, service.predict, **FORM)
        whole = [ask(num_beams=NUM_BEAMS) for _ in range(NUM_WHOLE)]
        stream = ask(num_beams=1, stream=True)
        call = vision.Predict.future(request, timeout=STOP_S)
        wait_until(lambda: num_queued_or_answered(service) == NUM_WHOLE + 2 - NUM_RUNNING)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not service.is_ready())
        assert_refusing(service, channel)
        service.process.send_signal(signal.SIGTERM)  # a second one changes nothing
        assert not all(answer.done() for answer in whole)
        results = [answer.result().json() for answer in whole]
        results.append(parse_events(stream.result().text)[-1][1])
        assert {result["usage"]["generated_tokens"] for result in results} == {NUM_TOKENS}
        assert call.result().usage.generated_tokens == NUM_TOKENS
        assert service.process.wait(STOP_S) == 0
    assert "ended with status" not in service.log.read_text()


def test_late_processes_are_killed(stopping: tuple[RunningService, list[int]]) -> None:
    service, processes = stopping
    assert service.process.wait(STOP_S) == 0
    assert not any(map(is_alive, processes))
    assert re.search(f"killed after .* s: {RUNNER}", service.log.read_text())
