"""The calls of the API: for each its REST path and its gRPC method, and how their responses are
parsed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from diptych_client.errors import ErrorDetail, InternalError, connection_failed
from diptych_client.requests import Request
from diptych_client.results import Answer, Comparison, Model, Task
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_messages import (
    answer_from_message,
    comparison_from_message,
    models_from_message,
    tasks_from_message,
)
from diptych_client.transports.rest_messages import (
    answer_from_json,
    comparison_from_json,
    models_from_json,
    tasks_from_json,
)

ResultT = TypeVar("ResultT")
ResponseT = TypeVar("ResponseT")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Operation(Generic[ResultT]):
    """One call of the API over both transports."""

    path: str
    from_json: Callable[[Any], ResultT]
    method: str
    request: type[Message]
    response: type[Message]
    from_message: Callable[[Any], ResultT]


PREDICT: Operation[Answer] = Operation(
    "/v1/predict", answer_from_json, "Predict", pb.PredictRequest, pb.Answer, answer_from_message
)
COMPARE: Operation[Comparison] = Operation(
    "/v1/compare",
    comparison_from_json,
    "Compare",
    pb.CompareRequest,
    pb.Comparison,
    comparison_from_message,
)
MODELS: Operation[tuple[Model, ...]] = Operation(
    "/v1/models",
    models_from_json,
    "ListModels",
    pb.ListModelsRequest,
    pb.ListModelsResponse,
    models_from_message,
)
TASKS: Operation[tuple[Task, ...]] = Operation(
    "/v1/tasks",
    tasks_from_json,
    "ListTasks",
    pb.ListTasksRequest,
    pb.ListTasksResponse,
    tasks_from_message,
)


@dataclass(frozen=True, slots=True)
class Attempt(Generic[ResultT]):
    """One attempt of a call, with the id that all its attempts share and the time that remains."""

    operation: Operation[ResultT]
    request: Request
    request_id: str
    timeout_s: float


def parsed(
    parse: Callable[[ResponseT], ValueT], response: ResponseT, attempt: Attempt[Any]
) -> ValueT:
    """Return the parsed response; raise `InternalError` if it violates the API."""
    try:
        return parse(response)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        message = f"cannot parse the response to {attempt.operation.method}: {error!r}"
        raise InternalError(ErrorDetail("internal", message, None, attempt.request_id)) from error


def check_stream_is_complete(last_event: str | Answer | None, attempt: Attempt[Answer]) -> None:
    """Raise `ConnectionFailed` if a stream ended without its answer."""
    if not isinstance(last_event, Answer):
        raise connection_failed("the stream ended before the answer", attempt.request_id)
