import logging
import time

import pytest
from prometheus_client import REGISTRY

from service.errors import InvalidRequest, ServiceError
from tasks.results import DetectionsResult
from tests.support.core_calls import OD_PROMPT, codes, compare, florence_fails, predict, run
from tests.support.fake_runners import DECODE_S, ENCODE_S, PREFILL_S, FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ID,
    PALIGEMMA_ANSWERS,
    PALIGEMMA_ID,
    PNG,
    context,
    make_core,
)
from tests.support.trace_collector import TRACE_ID, TRACEPARENT
from wire.runner_channel import RunnerUnreachable
from wire.runner_messages import Failed
from wire.telemetry.tracing import request_trace

STAGES = (
    "preprocess",
    "encode_queue",
    "encode",
    "decode_queue",
    "prefill",
    "decode",
    "postprocess",
)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"diptych_{name}", labels) or 0.0


def test_answer_is_counted() -> None:
    labels = {"model": FLORENCE_ID, "task": "object_detection"}
    names = [
        ("requests_total", {"api": "test", "status": "ok"}),
        ("generated_tokens_total", {}),
        ("constrained_tokens_total", {}),
        ("request_seconds_count", {}),
        ("time_to_first_token_seconds_count", {}),
        ("time_per_output_token_seconds_count", {}),
        ("unparsed_outputs_total", {}),
        *(("stage_seconds_count", {"stage": stage}) for stage in STAGES),
    ]
    before = [metric(name, **labels, **more) for name, more in names]
    sums = [f"time_{name}_seconds_sum" for name in ("to_first_token", "per_output_token")]
    sums_before = [metric(name, **labels) for name in sums]
    start_s = time.monotonic()
    predict(make_core(), task="object_detection")
    took_s = time.monotonic() - start_s
    increases = [
        metric(name, **labels, **more) - old
        for (name, more), old in zip(names, before, strict=True)
    ]
    assert increases == [
        1,
        7,
        1,
        1,
        1,
        1,
        0,
        *[1] * 7,
    ]  # two words, four locations and the end token
    to_first_token_s, per_output_token_s = (
        metric(n, **labels) - old for n, old in zip(sums, sums_before, strict=True)
    )
    assert per_output_token_s == pytest.approx(DECODE_S / 6)
    assert ENCODE_S + PREFILL_S < to_first_token_s < ENCODE_S + PREFILL_S + took_s


def test_unparsed_text_is_counted() -> None:
    labels = {"model": FLORENCE_ID, "task": "object_detection"}
    before = metric("unparsed_outputs_total", **labels)
    core = make_core(decoders={FLORENCE_ID: FakeDecoder({OD_PROMPT: "nothing of the kind"})})
    answer = predict(core, task="object_detection")
    assert answer.result == DetectionsResult((), is_parsed=False)
    assert answer.written.sequences[0].text == "nothing of the kind"
    assert metric("unparsed_outputs_total", **labels) - before == 1


def test_log_has_one_line_per_model(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "service"),
        request_trace({"traceparent": TRACEPARENT}, "test", None),
    ):
        compare(florence_fails(RunnerUnreachable("refused")), task="ocr")
    lines = sorted(
        record.getMessage()
        for record in caplog.records
        if record.name == "service.inference.recording"
    )
    assert (
        lines[0]
        == f"request request-1 not_ready api=test model={FLORENCE_ID} task=ocr trace_id={TRACE_ID}"
    )
    ok = (
        f"request request-1 ok api=test model={PALIGEMMA_ID} task=ocr image=640x480 tokens=2"
        " total_ms="
    )
    assert lines[1].startswith(ok)
    assert lines[1].endswith(f" trace_id={TRACE_ID}")
    assert len(lines) == 2


def test_log_has_no_contents(caplog: pytest.LogCaptureFixture) -> None:
    secret = "purple-elephant"
    answers = {
        f"detect {secret}": f"<loc0200><loc0100><loc0600><loc0500> {secret}",
        **PALIGEMMA_ANSWERS,
    }
    decoders = {
        PALIGEMMA_ID: FakeDecoder(answers),
        FLORENCE_ID: FakeDecoder(
            {f"Locate {secret} in the image.": Failed(code="internal", message="failed")}
        ),
    }
    fields = {"task": "open_vocabulary_detection", "labels": [secret]}
    with caplog.at_level(logging.DEBUG):
        comparison = run(make_core(decoders=decoders).compare(PNG, fields, context()))
        with pytest.raises(InvalidRequest):
            run(make_core().predict(PNG, {**fields, "unknown": secret}, context()))
    assert codes(comparison) == {FLORENCE_ID: "internal", PALIGEMMA_ID: "ok"}
    assert caplog.records
    assert secret not in caplog.text
    assert "PNG" not in caplog.text


def test_defect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServiceError, match=f"^{FLORENCE_ID} failed; "):
        predict(florence_fails(RuntimeError("a defect")), task="ocr")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"request request-1: {FLORENCE_ID} failed"
    assert "RuntimeError: a defect" in caplog.text
