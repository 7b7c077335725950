"""Records the end of every request: metrics by model and task, one log line, attributes of the span.

Images, prompts, answers and keys are never logged or traced.
"""

import logging
from dataclasses import fields

from opentelemetry.semconv._incubating.attributes.gen_ai_attributes import (
    GEN_AI_RESPONSE_FINISH_REASONS,
    GEN_AI_USAGE_INPUT_TOKENS,
    GEN_AI_USAGE_OUTPUT_TOKENS,
)
from opentelemetry.trace import get_current_span

from runners.telemetry.tracing import trace_id
from service.errors import InternalError, ServiceError
from service.inference.prediction import Answer
from service.telemetry import logs
from service.telemetry.metrics import (
    GENERATED_TOKENS,
    REQUEST_SECONDS,
    REQUESTS,
    STAGE_SECONDS,
    TIME_PER_OUTPUT_TOKEN_SECONDS,
    TIME_TO_FIRST_TOKEN_SECONDS,
    UNPARSED_OUTPUTS,
)
from service.telemetry.tracing import note_status

logger = logging.getLogger(__name__)

NONE = "none"  # label for the model or task of a request that did not reach one
_STAGES_TO_FIRST_TOKEN = ("preprocess_s", "encode_queue_s", "encode_s", "decode_queue_s", "prefill_s")


def record_answer(answer: Answer, api: str, request_id: str) -> None:
    """Count, log and trace an answer; the current span is that of the answer."""
    labels, times = (answer.model.id, answer.request.task.id), answer.times
    num_tokens = answer.num_generated_tokens
    REQUESTS.labels(api, *labels, "ok").inc()
    REQUEST_SECONDS.labels(*labels).observe(times.total_s)
    for field in fields(times):
        if field.name != "total_s":
            STAGE_SECONDS.labels(*labels, field.name.removesuffix("_s")).observe(getattr(times, field.name))
    ttft_s = sum(getattr(times, name) for name in _STAGES_TO_FIRST_TOKEN)
    TIME_TO_FIRST_TOKEN_SECONDS.labels(*labels).observe(ttft_s)
    for sequence in answer.sequences:
        if sequence.num_generated_tokens > 1:
            tpot_s = sequence.decode_s / (sequence.num_generated_tokens - 1)
            TIME_PER_OUTPUT_TOKEN_SECONDS.labels(*labels).observe(tpot_s)
    GENERATED_TOKENS.labels(*labels).inc(num_tokens)
    if not answer.result.is_parsed:
        UNPARSED_OUTPUTS.labels(*labels).inc()
    _trace_answer(answer)
    logger.info(
        "request %s ok api=%s model=%s task=%s image=%dx%d tokens=%d total_ms=%.1f trace_id=%s",
        *(request_id, api, *labels, *answer.image_size_wh, num_tokens, times.total_s * 1000, trace_id()),
        extra=logs.fields(_labels(request_id, "ok", api, *labels) | _sizes_and_times(answer, num_tokens)),
    )


def record_error(error: ServiceError, api: str, request_id: str) -> None:
    """Count and log an error that ends a request, or is the outcome of one model in a comparison."""
    model, task = error.model or NONE, error.task or NONE
    REQUESTS.labels(api, model, task, error.code).inc()
    logger.info(
        "request %s %s api=%s model=%s task=%s trace_id=%s",
        *(request_id, error.code, api, model, task, trace_id()),
        extra=logs.fields(_labels(request_id, error.code, api, model, task)),
    )


def record_failure(error: Exception, api: str, request_id: str) -> ServiceError:
    """Count, log and trace the error that ends a request; return the one for the client.

    An exception other than `ServiceError` is a defect: only the log has its cause.
    """
    if isinstance(error, ServiceError):
        failure = error
    else:
        logger.error("request %s failed", request_id, exc_info=error, extra=logs.fields({"request_id": request_id}))
        failure = InternalError("the service failed; the cause is in its log under the request id")
    note_status(failure.code)
    record_error(failure, api, request_id)
    return failure


def record_gone_client(api: str, request_id: str) -> None:
    """Count and log a request whose client disconnected before its answer."""
    REQUESTS.labels(api, NONE, NONE, "client_gone").inc()
    note_status("client_gone")
    logger.info(
        "request %s client_gone api=%s trace_id=%s",
        *(request_id, api, trace_id()),
        extra=logs.fields(_labels(request_id, "client_gone", api, NONE, NONE)),
    )


def _labels(request_id: str, status: str, api: str, model: str, task: str) -> dict[str, object]:
    return {"request_id": request_id, "status": status, "api": api, "model": model, "task": task}


def _sizes_and_times(answer: Answer, num_tokens: int) -> dict[str, object]:
    width, height = answer.image_size_wh
    return {
        "image_width": width,
        "image_height": height,
        "generated_tokens": num_tokens,
        "vision_cache": answer.vision_cache,
        **{
            f"{field.name.removesuffix('_s')}_ms": round(getattr(answer.times, field.name) * 1000, 3)
            for field in fields(answer.times)
        },
    }


def _trace_answer(answer: Answer) -> None:
    note_status("ok")
    if not (span := get_current_span()).is_recording():
        return
    span.set_attributes(
        {
            GEN_AI_USAGE_INPUT_TOKENS: answer.num_image_tokens + answer.num_prompt_tokens,
            GEN_AI_USAGE_OUTPUT_TOKENS: answer.num_generated_tokens,
            GEN_AI_RESPONSE_FINISH_REASONS: [sequence.finish_reason for sequence in answer.sequences],
            "diptych.image_tokens": answer.num_image_tokens,
            "diptych.image_width": answer.image_size_wh[0],
            "diptych.image_height": answer.image_size_wh[1],
            "diptych.vision_cache": answer.vision_cache,
        }
    )
