"""Records every request: metrics by model and task, one log line, spans.

Images, prompts, answers and keys are never logged or traced.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import Span, get_current_span

from service.errors import ErrorCode, ServiceError
from service.inference.prediction import Answer, Stage
from service.telemetry import metrics
from service.telemetry.logs import FIELDS
from wire.telemetry.tracing import note_error, span, trace_id

logger = logging.getLogger(__name__)

NONE = "none"  # label for the model or task of a request that did not reach one
_STAGES_TO_FIRST_TOKEN: tuple[Stage, ...] = (
    "preprocess",
    "encode_queue",
    "encode",
    "decode_queue",
    "prefill",
)
_OPERATION = "generate_content"
_STATUS = "diptych.status"  # attribute of a span: ok, an error code, or client_gone
# A client's error does not fail the server's span (OpenTelemetry's conventions for HTTP and gRPC).
_FAULTS: frozenset[str] = frozenset[ErrorCode](
    {"internal", "not_ready", "runner_failed", "deadline_exceeded"}
)


def answer_span(model: str, task: str, request_id: str) -> AbstractContextManager[Span]:
    attributes = {
        gen_ai.GEN_AI_OPERATION_NAME: _OPERATION,
        gen_ai.GEN_AI_PROVIDER_NAME: "diptych",
        gen_ai.GEN_AI_REQUEST_MODEL: model,
        "diptych.task": task,
        "diptych.request_id": request_id,
    }
    return span(f"{_OPERATION} {model}", attributes)


def note_status(status: str) -> None:
    current = get_current_span()
    current.set_attribute(_STATUS, status)
    if status in _FAULTS:
        note_error(current, status)


def record_answer(answer: Answer, api: str, request_id: str) -> None:
    labels = (answer.model.id, answer.request.task.id)
    usage = answer.written.usage
    times_s = answer.times_s
    metrics.REQUEST_SECONDS.labels(*labels).observe(times_s["total"])
    for stage, stage_s in times_s.items():
        if stage != "total":
            metrics.STAGE_SECONDS.labels(*labels, stage).observe(stage_s)
    ttft_s = sum(times_s[stage] for stage in _STAGES_TO_FIRST_TOKEN)
    metrics.TIME_TO_FIRST_TOKEN_SECONDS.labels(*labels).observe(ttft_s)
    for sequence in answer.written.sequences:
        if sequence.num_generated_tokens > 1:
            tpot_s = sequence.decode_s / (sequence.num_generated_tokens - 1)
            metrics.TIME_PER_OUTPUT_TOKEN_SECONDS.labels(*labels).observe(tpot_s)
    metrics.GENERATED_TOKENS.labels(*labels).inc(usage.generated_tokens)
    metrics.CONSTRAINED_TOKENS.labels(*labels).inc(usage.constrained_tokens)
    if not answer.result.is_parsed:
        metrics.UNPARSED_OUTPUTS.labels(*labels).inc()
    width, height = answer.image_size_wh
    fields: dict[str, int | float | str] = {
        "image_width": width,
        "image_height": height,
        "vision_cache": answer.written.features.outcome,
    }
    finish_reasons = [sequence.finish_reason for sequence in answer.written.sequences]
    get_current_span().set_attributes(
        {
            _STATUS: "ok",
            gen_ai.GEN_AI_USAGE_INPUT_TOKENS: usage.image_tokens + usage.prompt_tokens,
            gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: usage.generated_tokens,
            gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: finish_reasons,
            "diptych.image_tokens": usage.image_tokens,
            **{f"diptych.{name}": value for name, value in fields.items()},
        }
    )
    fields["generated_tokens"] = usage.generated_tokens
    for stage, stage_s in times_s.items():
        fields[f"{stage}_ms"] = round(stage_s * 1000, 3)
    text = f" model={labels[0]} task={labels[1]} image={width}x{height}"
    text += f" tokens={usage.generated_tokens} total_ms={times_s['total'] * 1000:.1f}"
    _record(request_id, "ok", api, labels, text, fields)


def record_error(error: ServiceError, api: str, request_id: str) -> None:
    labels = (error.model or NONE, error.task or NONE)
    _record(request_id, error.code, api, labels, f" model={labels[0]} task={labels[1]}")


def record_failure(error: Exception, api: str, request_id: str) -> ServiceError:
    """Count, log and trace the error that ends a request; return the one for the client."""
    failure = as_service_error(error, request_id)
    note_status(failure.code)
    record_error(failure, api, request_id)
    return failure


def as_service_error(error: Exception, request_id: str, subject: str | None = None) -> ServiceError:
    """Return the error for the client; only the log has the cause of a defect in `subject`."""
    if isinstance(error, ServiceError):
        return error
    failed = "request %s failed" if subject is None else f"request %s: {subject} failed"
    logger.error(failed, request_id, exc_info=error, extra={FIELDS: {"request_id": request_id}})
    subject = subject or "the service"
    return ServiceError(f"{subject} failed; the cause is in its log under the request id")


def record_gone_client(api: str, request_id: str) -> None:
    note_status("client_gone")
    _record(request_id, "client_gone", api, (NONE, NONE))


def _record(
    request_id: str,
    status: str,
    api: str,
    labels: tuple[str, str],
    text: str = "",
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    model, task = labels
    metrics.REQUESTS.labels(api, model, task, status).inc()
    fields = {"request_id": request_id, "status": status, "api": api, "model": model, "task": task}
    logger.info(
        "request %s %s api=%s%s trace_id=%s",
        *(request_id, status, api, text, trace_id()),
        extra={FIELDS: {**fields, **more}},
    )
