"""What the service can be asked for: one table of both interfaces, so that a transport needs one method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from client.grpc_messages import answer_from_message, comparison_from_message, models_from_message, tasks_from_message
from client.requests import Request
from client.rest_messages import answer_from_json, comparison_from_json, models_from_json, tasks_from_json
from client.results import Answer, Comparison, Model, Task
from service.proto import vision_pb2 as pb

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Operation(Generic[ResultT]):
    """A path of REST and a method of gRPC that answer the same, and how each answer is read."""

    path: str
    from_json: Callable[[Any], ResultT]
    method: str
    message: type[Message]
    from_message: Callable[[Any], ResultT]


PREDICT: Operation[Answer] = Operation(
    "/v1/predict", answer_from_json, "Predict", pb.PredictRequest, answer_from_message
)
COMPARE: Operation[Comparison] = Operation(
    "/v1/compare", comparison_from_json, "Compare", pb.CompareRequest, comparison_from_message
)
MODELS: Operation[tuple[Model, ...]] = Operation(
    "/v1/models", models_from_json, "ListModels", pb.ListModelsRequest, models_from_message
)
TASKS: Operation[tuple[Task, ...]] = Operation(
    "/v1/tasks", tasks_from_json, "ListTasks", pb.ListTasksRequest, tasks_from_message
)


@dataclass(frozen=True, slots=True)
class Attempt(Generic[ResultT]):
    """One try of a call: what is asked, under which id, and the time that is left for it."""

    operation: Operation[ResultT]
    request: Request
    request_id: str
    timeout_s: float
