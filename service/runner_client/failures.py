"""The service's errors for failures of a runner: of a call, or of a sequence in an answered one."""

import logging

from service.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
)
from wire.runner_channel import CallFailed, CallTimedOut, ChannelError, RunnerUnavailable
from wire.runner_messages import Failed

logger = logging.getLogger(__name__)


def error_of_call(model_id: str, error: ChannelError) -> ServiceError:
    """Return the error for a call to the runner of `model_id` that failed."""
    runner = f"the runner of {model_id}"
    match error:
        case RunnerUnavailable():
            return NotReady(
                f"no runner of {model_id} with this gateway's build is ready; retry in a few"
                " seconds"
            )
        case CallTimedOut():
            return DeadlineExceeded(f"{runner} did not answer before the deadline")
        case CallFailed():
            return InternalError(f"{runner} answered with {error}; its log has the cause")
        case _:
            logger.warning("%s is unreachable: %r", runner, error)
            return NotReady(f"{runner} is starting or restarting; retry in a few seconds")


def error_of_outcome(failed: Failed) -> ServiceError:
    """Return the error for a sequence or image that failed in an answered call."""
    match failed.code:
        case "sequence_too_long":
            return InvalidRequest(
                failed.message, "max_new_tokens" if "max_new_tokens" in failed.message else None
            )
        case "too_many_beams":
            return InvalidRequest(failed.message, "num_beams")
        case "deadline_exceeded":
            return DeadlineExceeded(failed.message)
        case "unknown_token":
            return InvalidRequest(failed.message, "messages")
        case "unknown_adapter":
            return NotReady(failed.message)
        case "overloaded":
            return Overloaded(failed.message)
        case _:
            return InternalError(failed.message)
