"""Python client of Diptych, typed, synchronous and for asyncio, over REST and gRPC.

The command `diptych` is its command line. Images go in as paths, bytes, arrays, tensors or PIL
images; answers are dataclasses.
"""

from diptych_client.client import AsyncClient, Client
from diptych_client.errors import (
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
    UnreadableFile,
    UnsupportedImage,
    UnsupportedTask,
)
from diptych_client.geometry import ImageSize, RunLengthMask
from diptych_client.requests import AnswerOptions, TaskParameters
from diptych_client.results import (
    Answer,
    Comparison,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Model,
    ModelFailure,
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Timings,
    Usage,
)

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
    "UnreadableFile",
    "UnsupportedImage",
    "UnsupportedTask",
    "Usage",
]
