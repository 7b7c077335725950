"""The Python client of Diptych: typed, with and without asyncio, over REST and gRPC. Needs neither torch nor a model.

`python -m client` is its command line.
"""

from client.async_client import AsyncClient
from client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    Unauthorized,
    UnknownModel,
    UnsupportedImage,
    UnsupportedTask,
)
from client.requests import AnswerOptions, TaskParameters
from client.results import (
    Answer,
    Comparison,
    Detection,
    DetectionsResult,
    ImageSize,
    Instance,
    InstancesResult,
    Model,
    ModelFailure,
    RunLengthMask,
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Timings,
    Usage,
)
from client.sync_client import Client

__all__ = [
    "Answer",
    "AnswerOptions",
    "AsyncClient",
    "Client",
    "Comparison",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Detection",
    "DetectionsResult",
    "DiptychError",
    "ErrorDetail",
    "ImageSize",
    "ImageTooLarge",
    "Instance",
    "InstancesResult",
    "InternalError",
    "InvalidRequest",
    "Model",
    "ModelFailure",
    "NotReady",
    "Overloaded",
    "PayloadTooLarge",
    "RunLengthMask",
    "Task",
    "TaskParameters",
    "TextRegion",
    "TextRegionsResult",
    "TextResult",
    "Timings",
    "Unauthorized",
    "UnknownModel",
    "UnsupportedImage",
    "UnsupportedTask",
    "Usage",
]
