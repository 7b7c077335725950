"""Requests as fields of the API, independent of the transport.

Nothing is validated here: the service validates every field, and its error names the offending one.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from diptych_client.errors import new_error
from diptych_client.geometry import ImageSize

Step = Mapping[str, Any]  # the fields of docs/analyze.md
FieldValue = str | int | float | bool | tuple[str, ...] | tuple[float, ...] | tuple[Step, ...]
KindT = TypeVar("KindT")


@dataclass(slots=True)
class StoredImage:
    """An image that the service keeps, as `Client.image` yields it; its file if it keeps none."""

    data: bytes
    id: str | None = None


@dataclass(frozen=True, slots=True)
class TaskParameters:
    """Parameters of a task; `Client.tasks()` lists those of each task. None is not sent."""

    labels: Sequence[str] | None = None
    caption: str | None = None
    phrases: Sequence[str] | None = None
    phrase: str | None = None
    # [x1, y1, x2, y2] in pixels of the upright image
    region: tuple[float, float, float, float] | None = None
    detail: str | None = None
    language: str | None = None
    question: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Options of the generation and of the answer's format; None selects the service's default."""

    max_new_tokens: int | None = None
    num_beams: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    constrained: bool | None = None
    mask_format: Literal["polygon", "rle"] | None = None
    min_score: float | None = None
    min_precision: float | None = None  # objects that are proved to be right so often
    nms_iou: float | None = None
    tiles: int | str | None = None  # off, auto, the maximum of tiles, or rows and columns as "2x3"
    overlap: float | None = None  # share of a tile's side that the next one has too
    min_object_px: int | None = None  # for `auto`
    image_embedding: bool | None = None  # add the mean of the image's features; of predict alone


# for editors, which complete it; a newer service may have others
TaskId = (
    Literal["captioning", "object_detection", "open_vocabulary_detection", "phrase_grounding"]
    | Literal["region_proposal", "dense_region_captioning", "instance_segmentation"]
    | Literal["ocr", "ocr_with_regions", "region_description", "visual_question_answering"]
    | str
)
NO_PARAMETERS = TaskParameters()
DEFAULT_OPTIONS = AnswerOptions()


@dataclass(frozen=True, slots=True)
class Request:
    """An image, encoded or by URL, and the other fields; a listing has neither."""

    image: bytes | str | None = None
    fields: Mapping[str, FieldValue] = field(default_factory=dict)
    stored: StoredImage | None = None  # the image, which is sent again when it has expired
    original: ImageSize | None = None  # size of the image before it was downscaled


def from_mapping(kind: type[KindT], values: KindT | Mapping[str, Any]) -> KindT:
    """Return parameters or options that may be a mapping; raise `InvalidRequest`."""
    if not isinstance(values, Mapping):
        return values
    try:
        return kind(**values)
    except TypeError as error:  # it names the argument
        raise new_error("invalid_request", str(error)) from error


def non_null_fields(parameters: TaskParameters, options: AnswerOptions) -> dict[str, FieldValue]:
    """Return the fields that are not None, sequences as tuples.

    A list of labels or phrases may be one text, in which commas separate them.
    """
    values: dict[str, FieldValue] = {}
    for name, value in {**asdict(parameters), **asdict(options)}.items():
        if value is None:
            continue
        if name in ("labels", "phrases") and isinstance(value, str):
            values[name] = split_list(value)
        elif name == "tiles":
            values[name] = str(value)  # gRPC has one type
        else:
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            values[name] = tuple(value) if is_list else value
    return values


def split_list(text: str) -> tuple[str, ...]:
    """Return the elements of a comma-separated list; quotes hold an element with a comma."""
    try:
        (row,) = csv.reader([" ".join(text.splitlines())], skipinitialspace=True)
    except csv.Error as error:
        raise new_error("invalid_request", f"cannot split a list: {error}") from error
    return tuple(filter(None, map(str.strip, row)))


def read_api_key(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
