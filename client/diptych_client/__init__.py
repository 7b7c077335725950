"""Python client of Diptych, typed, synchronous and for asyncio, over REST and gRPC.

The command `diptych` is its command line. Images go in as paths, bytes, arrays, tensors or PIL
images; answers are dataclasses.
"""

from diptych_client.analysis import Analysis, StepAnswer, StepAnswers
from diptych_client.clients.async_client import AsyncClient
from diptych_client.clients.client import Client
from diptych_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    DiptychError,
    ErrorDetail,
    ImageExpired,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    NotFound,
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
from diptych_client.requests import AnswerOptions, StoredImage, TaskParameters
from diptych_client.results import (
    Answer,
    Comparison,
    Detection,
    DetectionsResult,
    Guarantee,
    Instance,
    InstancesResult,
    Model,
    ModelFailure,
    Task,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Tiles,
    Timings,
    Usage,
)

__all__ = [
    "Analysis",
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
    "Guarantee",
    "ImageExpired",
    "ImageSize",
    "ImageTooLarge",
    "Instance",
    "InstancesResult",
    "InternalError",
    "InvalidRequest",
    "Model",
    "ModelFailure",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PayloadTooLarge",
    "RunLengthMask",
    "StepAnswer",
    "StepAnswers",
    "StoredImage",
    "Task",
    "TaskParameters",
    "TextRegion",
    "TextRegionsResult",
    "TextResult",
    "Tiles",
    "Timings",
    "Unauthorized",
    "UnknownModel",
    "UnreadableFile",
    "UnsupportedImage",
    "UnsupportedTask",
    "Usage",
]
