"""The traces of a running service at a small collector, its log as JSON; and a service whose
collector is away.

All spans of the first are sent when it stops: its batches would be sent once an hour.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import pytest

from service.rpc.proto import vision_pb2 as pb
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import RunningService, forked_service, post_form
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.trace_collector import (
    CALLER_ID,
    TRACE_ID,
    TRACEPARENT,
    CollectedSpan,
    collecting,
)
from tests.system.test_answers import FLORENCE, PALIGEMMA

KEPT_BACK = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}  # ms
GRPC_TRACE, STREAM_TRACE, COMPARE_TRACE, FAILED_TRACE = (digit * 32 for digit in "abcd")
QUESTION = "is-there-a-xylophone"
LABEL = "a-heptagon-of-felt"
CAPTION: dict[str, Any] = {"task": "captioning", "detail": "detailed"}
ASK = {"task": "visual_question_answering", "model": PALIGEMMA, "question": QUESTION}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    TRACE_ID: ("/v1/predict", CAPTION | {"model": FLORENCE}),
    STREAM_TRACE: ("/v1/predict", ASK | {"stream": True}),
    COMPARE_TRACE: ("/v1/compare", {"task": "open_vocabulary_detection", "labels": LABEL}),
    FAILED_TRACE: ("/v1/predict", {"task": "ocr", LABEL: QUESTION}),
}


@dataclass(frozen=True, slots=True)
class Records:
    """The log lines and spans of a service that has ended."""

    log: list[dict[str, Any]]
    spans: list[CollectedSpan]

    def trace(self, trace_id: str) -> list[CollectedSpan]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def stages(self, trace_id: str) -> set[str]:
        """Return the line of each leaf of a trace, from its caller on."""
        spans = {span.span_id: span for span in self.trace(trace_id)}
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
    """Send a request of each kind."""
    responses = {}
    with service.client() as client:
        for trace_id, (path, fields) in REQUESTS.items():
            headers = {"traceparent": TRACEPARENT.replace(TRACE_ID, trace_id)}
            response = post_form(client, path, scene_png(), fields, headers)
            assert response.headers["x-trace-id"] == trace_id
            responses[trace_id] = response
    assert responses[FAILED_TRACE].status_code == 400
    assert parse_events(responses[STREAM_TRACE].text)[-1][0] == "result"
    with service.vision() as vision:
        request = pb.PredictRequest(image=scene_png(), model=PALIGEMMA, **CAPTION)
        metadata = [("traceparent", TRACEPARENT.replace(TRACE_ID, GRPC_TRACE))]
        _, call = vision.Predict.with_call(request, timeout=60, metadata=metadata)
        assert dict(call.trailing_metadata())["x-trace-id"] == GRPC_TRACE


@pytest.fixture(scope="module")
def records(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Records:
    log = tmp_path_factory.mktemp("traces") / "service.log"
    with collecting() as collector:
        settings = {"DIPTYCH_OTLP_ENDPOINT": collector.url, "DIPTYCH_LOG_FORMAT": "json"}
        with forked_service(exported.home, log, **settings, **KEPT_BACK) as service:
            send_all(service)
            assert not collector.spans
    return Records(list(map(json.loads, log.read_text().splitlines())), collector.spans)


def test_spans_connect_up_to_the_caller(records: Records) -> None:
    answer = f"{CALLER_ID} / POST /v1/predict / generate_content {FLORENCE}"
    of_gateway = ("admission", "preprocess", "postprocess")
    of_runner = ("encode_queue", "encode_batch", "decode_queue", "prefill", "decode_steps")
    stages = {f"{answer} / {stage}" for stage in of_gateway}
    stages |= {f"{answer} / POST /write / POST /write / {stage}" for stage in of_runner}
    assert records.stages(TRACE_ID) == stages
    parts = {span.name: span.part for span in records.trace(TRACE_ID)}
    assert parts["preprocess"] == parts["POST /v1/predict"] == "diptych"
    assert {parts[stage] for stage in of_runner[1:]} == {f"{FLORENCE}-runner"}


@pytest.mark.parametrize(
    ("trace_id", "root", "path", "models"),
    [
        (STREAM_TRACE, "POST /v1/predict", "/stream", [PALIGEMMA]),
        (GRPC_TRACE, "diptych.v1.Vision/Predict", "/write", [PALIGEMMA]),
        (COMPARE_TRACE, "POST /v1/compare", "/write", EMBEDDED),
    ],
)
def test_every_request_is_one_trace(
    records: Records, trace_id: str, root: str, path: str, models: list[str]
) -> None:
    stages = records.stages(trace_id)
    assert all(stage.startswith(f"{CALLER_ID} / {root}") for stage in stages)
    for model in models:
        line = f"{CALLER_ID} / {root} / generate_content {model} / POST {path} / POST {path}"
        assert {f"{line} / prefill", f"{line} / decode_steps"} <= stages
    parts = {span.part for span in records.trace(trace_id)}
    assert parts >= {f"{model}-runner" for model in models}


def test_span_and_log_line_agree(records: Records) -> None:
    assert records.stages(FAILED_TRACE) == {f"{CALLER_ID} / POST /v1/predict"}
    spans = {span.name: span for span in records.trace(TRACE_ID)}
    line = next(line for line in records.log if line.get("trace_id") == TRACE_ID)
    answer = spans[f"generate_content {FLORENCE}"]
    for span in (answer, spans["decode_steps"]):
        assert span.attributes["gen_ai.usage.output_tokens"] == line["generated_tokens"]
    assert answer.attributes["diptych.request_id"] == line["request_id"]


def test_every_log_line_is_an_object(records: Records) -> None:
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in records.log)
    loggers = {line["logger"] for line in records.log}
    assert {"service.gateway", "service.supervision.supervisor"} < loggers
    assert any(logger.startswith("bentoml") for logger in loggers)
    requests = [line for line in records.log if line["logger"] == "service.inference.recording"]
    trace_ids = sorted(line["trace_id"] for line in requests)
    assert trace_ids == sorted([*REQUESTS, GRPC_TRACE, COMPARE_TRACE])
    for line in requests:
        assert re.fullmatch("[0-9a-f]{32}", line["request_id"])
        assert line["status"] == ("invalid_request" if line["trace_id"] == FAILED_TRACE else "ok")
        assert f"trace_id={line['trace_id']}" in line["message"]
