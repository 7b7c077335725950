"""The calls of the API: REST path, gRPC method, and how a response is parsed from JSON."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from diptych_client.errors import ErrorDetail, InternalError, connection_failed
from diptych_client.requests import Request
from diptych_client.results import Analysis, Answer, Comparison, Model, Task
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.rest_messages import (
    analysis_from_json,
    answer_from_json,
    comparison_from_json,
    models_from_json,
    stored_id,
    tasks_from_json,
)

ResultT = TypeVar("ResultT")
ResponseT = TypeVar("ResponseT")
ValueT = TypeVar("ValueT")

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
_MIN_TIMEOUT_S = 0.001  # a delay between retries may end late


@dataclass(frozen=True, slots=True)
class Operation(Generic[ResultT]):
    """One call of the API over both transports."""

    path: str
    method: str
    request: type[Message]
    response: type[Message]
    from_json: Callable[[Any], ResultT]
    verb: str = "GET"  # a call without an image


PREDICT: Operation[Answer] = Operation(
    "/v1/predict", "Predict", pb.PredictRequest, pb.Answer, answer_from_json
)
COMPARE: Operation[Comparison] = Operation(
    "/v1/compare", "Compare", pb.CompareRequest, pb.Comparison, comparison_from_json
)
ANALYZE: Operation[Analysis] = Operation(
    "/v1/analyze", "Analyze", pb.AnalyzeRequest, pb.Analysis, analysis_from_json
)
# Images are stored over REST alone: the other two fields are not used.
STORE: Operation[str] = Operation("/v1/images", "", pb.AnalyzeRequest, pb.Analysis, stored_id)
MODELS: Operation[tuple[Model, ...]] = Operation(
    "/v1/models", "ListModels", pb.ListModelsRequest, pb.ListModelsResponse, models_from_json
)
TASKS: Operation[tuple[Task, ...]] = Operation(
    "/v1/tasks", "ListTasks", pb.ListTasksRequest, pb.ListTasksResponse, tasks_from_json
)


def removal(image_id: str) -> Operation[str]:
    """Return the call that removes a stored image."""
    return replace(STORE, path=f"/v1/images/{image_id}", verb="DELETE")


@dataclass(frozen=True, slots=True)
class Call(Generic[ResultT]):
    """A call with the id and the deadline that all its attempts share."""

    operation: Operation[ResultT]
    request: Request
    request_id: str
    deadline_s: float  # time.monotonic()
    url: str = ""  # the service, without credentials

    def remaining_s(self) -> float:
        """Return the timeout of an attempt that starts now."""
        return max(_MIN_TIMEOUT_S, self.deadline_s - time.monotonic())


def parsed(parse: Callable[[ResponseT], ValueT], response: ResponseT, call: Call[Any]) -> ValueT:
    """Return the parsed response; raise `InternalError` if it violates the API."""
    try:
        return parse(response)
    except _MALFORMED as error:
        message = f"cannot parse the response to {call.operation.method}: {error!r}"
        raise InternalError(ErrorDetail("internal", message, None, call.request_id)) from error


def check_stream_is_complete(last_event: str | Answer | None, call: Call[Answer]) -> None:
    """Raise `ConnectionFailed` if a stream ended without its answer."""
    if not isinstance(last_event, Answer):
        reason = "the stream ended before the answer"
        raise connection_failed(reason, call.request_id, call.url, call.operation.path)
