"""OpenAI's objects of files and batches, and the requests that make them.

Source of names and meaning: OpenAI's API reference, "Files" and "Batches".
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.validation import StrictModel

DAY_S = 24 * 3600
_MAX_ID_CHARS = 100
_MIN_KEPT_S = 3600
MAX_KEPT_S = 30 * DAY_S

Endpoint = Literal["/v1/chat/completions", "/v1/predict", "/v1/compare", "/v1/analyze"]
Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED: frozenset[Status] = frozenset[Status](("failed", "completed", "expired", "cancelled"))


class FileObject(BaseModel):
    """A stored file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="seconds since 1970, as all times")
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(BaseModel):
    """Answer of DELETE /v1/files/{file_id}."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(BaseModel):
    """A line of the input file that is invalid."""

    code: str
    line: int | None
    message: str
    param: str | None = None


class BatchErrors(BaseModel):
    """The first invalid lines of the input file."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Number of the requests of a batch, and of those with an answer and with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def num_waiting(self) -> int:
        return self.total - self.completed - self.failed


class Batch(BaseModel):
    """A batch and where it is."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None


class _Page(BaseModel):
    object: Literal["list"] = "list"
    data: list[Any]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(_Page):
    """A page of files."""

    data: list[FileObject]


class BatchList(_Page):
    """A page of batches, the newest first."""

    data: list[Batch]


class ExpiresAfter(StrictModel):
    """How long a file is kept."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=_MIN_KEPT_S, le=MAX_KEPT_S, strict=False)  # a text in forms


class FileFields(StrictModel):
    """Fields of POST /v1/files other than the file."""

    purpose: Literal["batch"]
    expires_after: ExpiresAfter = ExpiresAfter(anchor="created_at", seconds=MAX_KEPT_S)


class BatchRequest(StrictModel):
    """Body of POST /v1/batches."""

    input_file_id: str = Field(max_length=_MAX_ID_CHARS)
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: (
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None
    ) = Field(None, max_length=16)
    output_expires_after: ExpiresAfter = ExpiresAfter(anchor="created_at", seconds=MAX_KEPT_S)


class BatchLine(StrictModel):
    """One request: a line of the input file."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str
    body: dict[Any, object]  # checked when it is answered, its names too
