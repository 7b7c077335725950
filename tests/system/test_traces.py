"""The traces of a running service at a small collector, its log as JSON; and a service whose
collector is away.

All spans of the first are sent when it stops: its batches would be sent once an hour.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.rpc.proto import vision_pb2 as pb
from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.trace_collector import (
    CALLER_ID,
    TRACE_ID,
    TRACEPARENT,
    CollectedSpan,
    collecting,
)
from tests.system.test_answers import FLORENCE, PALIGEMMA

KEPT_BACK = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}  # ms
GRPC_TRACE, STREAM_TRACE, FAILED_TRACE = (digit * 32 for digit in "abd")
QUESTION = "is-there-a-xylophone"
CAPTION: dict[str, Any] = {"task": "captioning", "detail": "detailed"}
ASK = {"task": "visual_question_answering", "model": PALIGEMMA, "question": QUESTION}
REQUESTS: dict[str, dict[str, Any]] = {
    TRACE_ID: CAPTION | {"model": FLORENCE},
    STREAM_TRACE: ASK | {"stream": True},
    FAILED_TRACE: {"task": "ocr", "colour": QUESTION},
}
OF_GATEWAY = {"admission", "preprocess", "postprocess"}
OF_RUNNER = {"encode_batch", "decode_queue", "prefill", "decode_steps"}


@dataclass(frozen=True, slots=True)
class Records:
    """The log lines and spans of a service that has ended."""

    log: list[dict[str, Any]]
    spans: list[CollectedSpan]

    def stages(self, trace_id: str) -> set[str]:
        """Return the line of each leaf of a trace, from its caller on."""
        spans = {span.span_id: span for span in self.spans if span.trace_id == trace_id}
        inner = {span.parent_id for span in spans.values()}
        lines = set()
        for span in spans.values():
            if span.span_id in inner or "can_open" in span.name:
                continue
            names = [span.name]
            parent_id = span.parent_id
            while parent_id in spans:
                names.append(spans[parent_id].name)
                parent_id = spans[parent_id].parent_id
            lines.add(" / ".join([parent_id, *reversed(names)]))
        return lines


def send_all(service: RunningService) -> None:
    for trace_id, fields in REQUESTS.items():
        headers = {"traceparent": TRACEPARENT.replace(TRACE_ID, trace_id)}
        response = service.predict(None, headers, **fields)
        assert response.headers["x-trace-id"] == trace_id
        assert response.is_success == (trace_id != FAILED_TRACE)
    with service.vision() as vision:
        request = pb.PredictRequest(image=scene_png(5), model=PALIGEMMA, **CAPTION)
        metadata = [("traceparent", TRACEPARENT.replace(TRACE_ID, GRPC_TRACE))]
        _, call = vision.Predict.with_call(request, timeout=60, metadata=metadata)
        assert dict(call.trailing_metadata())["x-trace-id"] == GRPC_TRACE


@pytest.fixture(scope="module")
def records(exported: ModelStore, folder: Path) -> Records:
    log = folder / "traces.log"
    with collecting() as collector:
        settings = {"DIPTYCH_OTLP_ENDPOINT": collector.url, "DIPTYCH_LOG_FORMAT": "json"}
        with forked_service(exported.home, log, **settings, **KEPT_BACK) as service:
            send_all(service)
            assert not collector.spans
    return Records(list(map(json.loads, log.read_text().splitlines())), collector.spans)


@pytest.mark.parametrize(
    ("trace_id", "root", "path", "model"),
    [
        (TRACE_ID, "POST /v1/predict", "/write", FLORENCE),
        (STREAM_TRACE, "POST /v1/predict", "/stream", PALIGEMMA),
        (GRPC_TRACE, "diptych.v1.Vision/Predict", "/write", PALIGEMMA),
    ],
)
def test_spans_connect_up_to_the_caller(
    records: Records, trace_id: str, root: str, path: str, model: str
) -> None:
    answer = f"{CALLER_ID} / {root} / generate_content {model}"
    stages = {f"{answer} / {stage}" for stage in OF_GATEWAY}
    stages |= {f"{answer} / POST {path} / POST {path} / {stage}" for stage in OF_RUNNER}
    assert stages <= records.stages(trace_id)
    parts = {span.name: span.part for span in records.spans if span.trace_id == trace_id}
    assert parts["preprocess"] == "diptych"
    assert {parts[stage] for stage in OF_RUNNER} == {f"{model}-runner"}


def test_every_log_line_is_an_object(records: Records) -> None:
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in records.log)
    loggers = {line["logger"] for line in records.log}
    assert {"service.gateway", "service.supervision.supervisor"} < loggers
    assert any(logger.startswith("bentoml") for logger in loggers)
    requests = [line for line in records.log if line["logger"] == "service.inference.recording"]
    assert {line["trace_id"] for line in requests} == {*REQUESTS, GRPC_TRACE}
    for line in requests:
        assert re.fullmatch("[0-9a-f]{32}", line["request_id"])
        assert line["status"] == ("invalid_request" if line["trace_id"] == FAILED_TRACE else "ok")
        assert f"trace_id={line['trace_id']}" in line["message"]
