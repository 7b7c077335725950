"""One place that counts and logs what became of a request: metrics by model and task, one log line.

Never logged: images, prompts, answers, keys.
"""

import logging
from dataclasses import fields

from service.errors import InternalError, ServiceError
from service.metrics import (
    GENERATED_TOKENS,
    REQUEST_SECONDS,
    REQUESTS,
    STAGE_SECONDS,
    TIME_PER_OUTPUT_TOKEN_SECONDS,
    TIME_TO_FIRST_TOKEN_SECONDS,
    UNPARSED_OUTPUTS,
)
from service.prediction import Answer

logger = logging.getLogger(__name__)

NONE = "none"  # label of a model or task that the request did not come to
_STAGES_TO_FIRST_TOKEN = ("preprocess_s", "encode_queue_s", "encode_s", "decode_queue_s", "prefill_s")


def record_answer(answer: Answer, api: str, request_id: str) -> None:
    """Count and log an answer."""
    labels, times = (answer.model.id, answer.request.task.id), answer.times
    num_tokens = sum(sequence.num_generated_tokens for sequence in answer.sequences)
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
    logger.info(
        "request %s ok api=%s model=%s task=%s image=%dx%d tokens=%d total_ms=%.1f",
        *(request_id, api, *labels, *answer.image_size_wh, num_tokens, times.total_s * 1000),
    )


def record_error(error: ServiceError, api: str, request_id: str, model: str = NONE, task: str = NONE) -> None:
    """Count and log an error; a request that failed before its model was known has no model."""
    error.is_recorded = True
    REQUESTS.labels(api, model, task, error.code).inc()
    logger.info("request %s %s api=%s model=%s task=%s", request_id, error.code, api, model, task)


def record_failure(error: Exception, api: str, request_id: str) -> ServiceError:
    """Count and log, once, what a request ends with; return what its client is told.

    What is not of the service's tree is a defect, of which only the log tells more.
    """
    if isinstance(error, ServiceError):
        failure = error
    else:
        logger.error("request %s failed", request_id, exc_info=error)
        failure = InternalError("the service failed; its log tells more")
    if not failure.is_recorded:
        record_error(failure, api, request_id)
    return failure


def record_gone_client(api: str, request_id: str) -> None:
    """Count and log a client that went before its answer was there."""
    REQUESTS.labels(api, NONE, NONE, "client_gone").inc()
    logger.info("request %s client_gone api=%s", request_id, api)
