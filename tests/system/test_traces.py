"""The traces of a running service at a small collector, its log as JSON; and a service whose
collector is away.

All spans of the first are sent when it stops: its batches would be sent once an hour.
"""

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.trace_collector import (
    CALLER_ID,
    TRACE_ID,
    TRACEPARENT,
    CollectedSpan,
    collecting,
)
from tests.system.test_answers import FLORENCE, PALIGEMMA, post_form

CAPTION = {"task": "captioning", "detail": "detailed"}
KEPT_BACK = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}  # ms
GRPC_TRACE, STREAM_TRACE, COMPARE_TRACE, FAILED_TRACE = (digit * 32 for digit in "abcd")
QUESTION = "is-there-a-xylophone"
LABEL = "a-heptagon-of-felt"
# Idle service: two seconds for the spans of each process, on a busy machine.
STOP_S = 30


@dataclass(frozen=True, slots=True)
class Told:
    """The trace ids, log lines and spans of a service that has ended."""

    ids: dict[str, str]  # the trace that a client asked for, and that it was told
    answers: list[str]
    log: list[dict[str, Any]]
    spans: list[CollectedSpan]

    def trace(self, trace_id: str) -> list[CollectedSpan]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def lineage(self, span: CollectedSpan) -> list[str]:
        """Return the names from a span up to the first, and who called that one."""
        parents = {each.span_id: each for each in self.spans}
        names = [span.name]
        while span.parent_id in parents:
            span = parents[span.parent_id]
            names.append(span.name)
        return [*names, span.parent_id]

    def stages(self, trace_id: str) -> set[str]:
        """Return the line of each leaf of a trace, from its caller on."""
        made = self.trace(trace_id)
        inner = {span.parent_id for span in made}
        leaves = [
            span for span in made if span.span_id not in inner and "can_open" not in span.name
        ]
        return {" / ".join(reversed(self.lineage(leaf))) for leaf in leaves}


def parent(trace_id: str) -> str:
    return TRACEPARENT.replace(TRACE_ID, trace_id)


def ask(service: RunningService) -> tuple[dict[str, str], list[str]]:
    """Send a request of each kind.

    Return the ids of their traces, as asked and as told, and the texts of answers.
    """
    image = scene_png()
    ids = {}
    texts = []
    with service.client() as client:
        client.headers["traceparent"] = parent(TRACE_ID)
        response = post_form(client, "/v1/predict", image, {**CAPTION, "model": FLORENCE})
        ids[TRACE_ID] = response.headers["x-trace-id"]
        texts.append(response.json()["result"]["text"])
        client.headers["traceparent"] = parent(STREAM_TRACE)
        fields = {
            "task": "visual_question_answering",
            "model": PALIGEMMA,
            "question": QUESTION,
            "stream": True,
        }
        response = post_form(client, "/v1/predict", image, fields)
        ids[STREAM_TRACE] = response.headers["x-trace-id"]
        assert parse_events(response.text)[-1][0] == "result"
        client.headers["traceparent"] = parent(COMPARE_TRACE)
        fields = {"task": "open_vocabulary_detection", "labels": LABEL}
        ids[COMPARE_TRACE] = post_form(client, "/v1/compare", image, fields).headers["x-trace-id"]
        client.headers["traceparent"] = parent(FAILED_TRACE)
        response = post_form(client, "/v1/predict", image, {"task": "ocr", LABEL: QUESTION})
        assert response.status_code == 400
        ids[FAILED_TRACE] = response.headers["x-trace-id"]
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub: Any = VisionStub(channel)
        request = pb.PredictRequest(
            image=image, task="captioning", detail="detailed", model=PALIGEMMA
        )
        answer, call = stub.Predict.with_call(
            request, timeout=60, metadata=[("traceparent", parent(GRPC_TRACE))]
        )
        ids[GRPC_TRACE] = dict(call.trailing_metadata())["x-trace-id"]
        texts.append(answer.text)
    return ids, texts


@pytest.fixture(scope="module")
def told(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    log = tmp_path_factory.mktemp("traces") / "service.log"
    with collecting() as collector:
        settings = {
            "DIPTYCH_OTLP_ENDPOINT": collector.url,
            "DIPTYCH_LOG_FORMAT": "json",
            **KEPT_BACK,
        }
        with forked_service(exported.home, log, **settings) as service:
            ids, answers = ask(service)
            assert not collector.spans
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        yield Told(ids, answers, lines, collector.spans)


def test_a_client_is_told_the_id_of_its_trace(told: Told) -> None:
    assert len(told.ids) == 5
    assert all(asked == got for asked, got in told.ids.items())


def test_spans_of_all_processes_connect_up_to_the_callers(told: Told) -> None:
    answer = f"{CALLER_ID} / POST /v1/predict / generate_content {FLORENCE}"
    of_gateway = ("admission", "preprocess", "postprocess")
    of_runner = ("encode_queue", "encode_batch", "decode_queue", "prefill", "decode_steps")
    stages = {f"{answer} / {stage}" for stage in of_gateway}
    stages |= {f"{answer} / POST /write / POST /write / {stage}" for stage in of_runner}
    assert told.stages(TRACE_ID) == stages
    parts = {span.name: span.part for span in told.trace(TRACE_ID)}
    assert parts["preprocess"] == parts["POST /v1/predict"] == "diptych"
    assert (
        parts["encode_batch"] == parts["prefill"] == parts["decode_steps"] == f"{FLORENCE}-runner"
    )


def test_a_stream_a_call_and_a_comparison_are_one_trace_each(told: Told) -> None:
    heads = {
        STREAM_TRACE: [
            f"POST /v1/predict / generate_content {PALIGEMMA} / POST /stream / POST /stream"
        ],
        GRPC_TRACE: [
            f"diptych.v1.Vision/Predict / generate_content {PALIGEMMA} / POST /write / POST /write"
        ],
        COMPARE_TRACE: [
            f"POST /v1/compare / generate_content {model} / POST /write / POST /write"
            for model in EMBEDDED
        ],
    }
    for trace_id, lines in heads.items():
        stages = told.stages(trace_id)
        assert all(stage.startswith(f"{CALLER_ID} / ") for stage in stages)
        for line in lines:
            assert f"{CALLER_ID} / {line} / prefill" in stages
            assert f"{CALLER_ID} / {line} / decode_steps" in stages
    assert {span.part for span in told.trace(COMPARE_TRACE)} >= {
        f"{model}-runner" for model in EMBEDDED
    }
    assert told.stages(FAILED_TRACE) == {f"{CALLER_ID} / POST /v1/predict"}


def test_an_answers_span_counts_its_tokens(told: Told) -> None:
    (answer,) = [span for span in told.trace(TRACE_ID) if span.name.startswith("generate_content")]
    (steps,) = [span for span in told.trace(TRACE_ID) if span.name == "decode_steps"]
    told_line = next(line for line in told.log if line.get("trace_id") == TRACE_ID)
    tokens = {span.attributes["gen_ai.usage.output_tokens"] for span in (answer, steps)}
    assert tokens == {told_line["generated_tokens"]}
    assert answer.attributes["diptych.request_id"] == told_line["request_id"]


def test_every_line_of_the_log_is_an_object_and_each_request_has_its_ids(told: Told) -> None:
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in told.log)
    assert {"service.gateway", "service.supervision.supervisor"} < {
        line["logger"] for line in told.log
    }
    assert any(line["logger"].startswith("bentoml") for line in told.log)
    requests = [line for line in told.log if line["logger"] == "service.inference.recording"]
    assert sorted(line["trace_id"] for line in requests) == sorted([*told.ids, COMPARE_TRACE])
    for line in requests:
        assert re.fullmatch("[0-9a-f]{32}", line["request_id"])
        assert line["status"] == ("invalid_request" if line["trace_id"] == FAILED_TRACE else "ok")
        assert f"trace_id={line['trace_id']}" in line["message"]


def test_no_span_and_no_line_has_a_prompt_an_answer_or_an_image(told: Told) -> None:
    secrets = [QUESTION, LABEL, *told.answers, repr(scene_png())[2:42]]
    assert all(len(text) > 20 for text in told.answers)
    everything = b"".join(span.bytes for span in told.spans).decode(
        "utf-8", "replace"
    ) + json.dumps(told.log)
    assert TRACE_ID in everything
    for secret in secrets:
        assert secret not in everything, secret


@pytest.mark.long
def test_a_collector_that_does_not_answer_changes_nothing_but_a_log_line(
    exported: ModelStore, tmp_path: Path
) -> None:
    log = tmp_path / "service.log"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = {
            "DIPTYCH_MODELS": FLORENCE,
            "DIPTYCH_OTLP_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "20",  # ms
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",  # s
        }
        with forked_service(exported.home, log, **settings) as service, service.client() as client:
            deadline_s = time.monotonic() + 2  # two batches of each process and more
            while time.monotonic() < deadline_s:
                assert_answered(client)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(STOP_S) == 0
    complaints = [
        line
        for line in log.read_text().splitlines()
        if "export" in line.lower() or "Queue full" in line
    ]
    assert 1 <= len(complaints) <= 3  # one of each process
    assert "Traceback" not in log.read_text()


def assert_answered(client: httpx.Client) -> None:
    response = post_form(client, "/v1/predict", scene_png(), {"task": "captioning"})
    assert response.is_success
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-trace-id"])
