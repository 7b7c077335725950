"""The traces of a running service at a small collector, and its log as JSON.

All spans are sent when it stops: its batches would be sent once an hour.
"""

import json
from pathlib import Path
from typing import Any

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

GRPC_TRACE, STREAM_TRACE = ("a" * 32, "b" * 32)
OF_GATEWAY = {"admission", "preprocess", "postprocess"}
OF_RUNNER = {"encode_batch", "decode_queue", "prefill", "decode_steps"}


def send_all(service: RunningService) -> None:
    for trace_id, model in {TRACE_ID: FLORENCE, STREAM_TRACE: PALIGEMMA}.items():
        headers = {"traceparent": TRACEPARENT.replace(TRACE_ID, trace_id)}
        fields: Any = {"task": "captioning", "model": model, "stream": trace_id == STREAM_TRACE}
        response = service.predict(None, headers, **fields)
        assert response.raise_for_status().headers["x-trace-id"] == trace_id
    with service.vision() as vision:
        request = pb.PredictRequest(image=scene_png(5), task="captioning", model=PALIGEMMA)
        metadata = [("traceparent", TRACEPARENT.replace(TRACE_ID, GRPC_TRACE))]
        _, call = vision.Predict.with_call(request, timeout=60, metadata=metadata)
        assert dict(call.trailing_metadata())["x-trace-id"] == GRPC_TRACE


def stages(spans: list[CollectedSpan], trace_id: str) -> dict[str, str]:
    """Return the part of each leaf of a trace, by its line from the caller on."""
    by_id = {span.span_id: span for span in spans if span.trace_id == trace_id}
    inner = {span.parent_id for span in by_id.values()}
    parts = {}
    for leaf in by_id.values():
        if leaf.span_id in inner:
            continue
        line = leaf.name
        parent_id = leaf.parent_id
        while parent_id in by_id:
            line = f"{by_id[parent_id].name} / {line}"
            parent_id = by_id[parent_id].parent_id
        parts[f"{parent_id} / {line}"] = leaf.part
    return parts


def test_spans_connect_up_to_the_caller(exported: ModelStore, tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    with collecting() as collector:
        settings = {"DIPTYCH_OTLP_ENDPOINT": collector.url, "DIPTYCH_LOG_FORMAT": "json"}
        settings["OTEL_BSP_SCHEDULE_DELAY"] = "3600000"  # ms
        with forked_service(exported.home, log, **settings) as service:
            send_all(service)
            assert not collector.spans
    for trace_id, root, path, model in (
        (TRACE_ID, "POST /v1/predict", "/write", FLORENCE),
        (STREAM_TRACE, "POST /v1/predict", "/stream", PALIGEMMA),
        (GRPC_TRACE, "diptych.v1.Vision/Predict", "/write", PALIGEMMA),
    ):
        answer = f"{CALLER_ID} / {root} / generate_content {model}"
        call = f"{answer} / POST {path} / POST {path}"
        expected = {f"{answer} / {stage}": "diptych" for stage in OF_GATEWAY}
        expected |= {f"{call} / {stage}": f"{model}-runner" for stage in OF_RUNNER}
        assert expected.items() <= stages(collector.spans, trace_id).items()
    lines = list(map(json.loads, log.read_text().splitlines()))
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    loggers = {line["logger"] for line in lines}
    assert {"service.gateway", "service.supervision.supervisor"} < loggers
    assert any(logger.startswith("bentoml") for logger in loggers)
    assert {line.get("trace_id") for line in lines} >= {TRACE_ID, STREAM_TRACE, GRPC_TRACE}
