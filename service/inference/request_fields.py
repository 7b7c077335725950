"""Validates the fields of a request, once for all interfaces.

Fields arrive as JSON types. A field that is unknown to the endpoint or the task is an error that
names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, TypeVar

from pydantic import Field, JsonValue, PlainValidator, ValidationError, WithJsonSchema

from service.errors import InvalidRequest
from service.validation import StrictModel, rejected_field
from tasks.errors import ParameterError, meant, shown
from tasks.results import MaskFormat
from tasks.table import TASKS, Task, TaskParameters, parse_parameters
from tasks.tiles.grid import MAX_OVERLAP, MAX_TILES, Tiles, parse_tiles, refusal

MAX_NEW_TOKENS = 4096
MAX_BEAMS = 10
MAX_NAME_CHARS = 200  # a model's id
MAX_TEMPERATURE = 2
# log-probabilities are divided by it in 32 bits: at 1e-38 they overflow
MIN_SAMPLED_TEMPERATURE = 1e-6
_MAX_SHOWN_CHARS = 80

_Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
_PARAMETERS = chain.from_iterable(task.parameters for task in TASKS.values())
PARAMETERS = {parameter.name: parameter for parameter in _PARAMETERS}
_GRID_SIDE: JsonValue = {"type": "integer", "minimum": 1, "maximum": MAX_TILES}
_TILES_SCHEMA: dict[str, JsonValue] = {
    "anyOf": [
        {
            "type": "string",
            "pattern": "^(off|auto|[0-9]{1,4}|[0-9]{1,4}x[0-9]{1,4})$",
            "maxLength": 9,
        },
        _GRID_SIDE,
        {
            "type": "object",
            "properties": {"rows": _GRID_SIDE, "columns": _GRID_SIDE},
            "required": ["rows", "columns"],
            "additionalProperties": False,
        },
    ]
}


class GenerationFields(StrictModel):
    """Fields of all endpoints, except the parameters of the task."""

    task: str
    """Task id; GET /v1/tasks lists them."""
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)] | None = None
    """Maximum number of new tokens; defaults to the checkpoint's own."""
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    """Number of beams, 1: no beam search; defaults to the checkpoint's own. Requires temperature
    0."""
    temperature: float = Field(
        0.0,
        ge=0,
        le=MAX_TEMPERATURE,
        description=(
            f"0 selects the most likely token; {MIN_SAMPLED_TEMPERATURE:g} to {MAX_TEMPERATURE}"
            " samples."
        ),
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Samples from the most likely tokens whose probabilities add up to this."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the sampling, for reproducible answers."""
    constrained: bool = True
    """Restricts generation to well-formed answers, for tasks with a format."""
    mask_format: MaskFormat = "polygon"
    """polygon, or rle for COCO run-length encoding."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum score of a returned object."""
    min_precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Returns only objects from a score on at which this share is proved to be right; refused where
    none is proved."""
    nms_iou: Annotated[float, Field(ge=0, le=1)] | None = None
    """Non-maximum suppression: of two objects with the same label whose boxes overlap by more than
    this intersection over union, the one with the higher score is returned; default: none is
    suppressed."""
    tiles: Annotated[Tiles, PlainValidator(parse_tiles), WithJsonSchema(_TILES_SCHEMA)] = "off"
    """Also asks about tiles of the image, in which small things are larger: off, auto, the maximum
    of tiles, or rows and columns (as text 2x3)."""
    overlap: Annotated[float, Field(ge=0, le=MAX_OVERLAP)] = 0.2
    """Share of a tile's side that the next one has too."""
    min_object_px: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Size of the smallest object of interest, in pixels of the image; for automatic tiles."""


class PredictFields(GenerationFields):
    """Fields of POST /v1/predict."""

    model: Annotated[str, Field(max_length=MAX_NAME_CHARS)] | None = None
    """Model id; defaults to the first that offers the task."""
    stream: bool = False
    """true streams server-sent events: text as it is written, then the answer."""
    image_embedding: bool = False
    """true adds the mean of the image's features to the answer."""


class CompareFields(GenerationFields):
    """Fields of POST /v1/compare."""

    models: Annotated[list[_Name], Field(min_length=1, max_length=32)] | None = None
    """Model ids; defaults to all that offer the task."""


FieldsT = TypeVar("FieldsT", bound=GenerationFields)


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """A validated request: the task with its parameters, and the other fields."""

    task: Task
    parameters: TaskParameters
    fields: GenerationFields


def parse_fields(
    fields_class: type[FieldsT], fields: Mapping[str, object]
) -> tuple[FieldsT, TaskRequest]:
    """Return an endpoint's validated fields and the request; raise `InvalidRequest`."""
    for name in fields:
        if name not in fields_class.model_fields and name not in PARAMETERS:
            names = ["image", *fields_class.model_fields, *sorted(PARAMETERS)]
            message = f"unknown field {shown(name)}{meant(name, names)}"
            raise InvalidRequest(
                f"{message}; the fields are {', '.join(names)}", name[:_MAX_SHOWN_CHARS]
            )
    try:
        common = {name: value for name, value in fields.items() if name not in PARAMETERS}
        values = fields_class.model_validate(common)
    except ValidationError as error:
        rejected = rejected_field(error)
        raise InvalidRequest(rejected.message, rejected.name.partition(".")[0]) from error
    if values.task not in TASKS:
        raise InvalidRequest(
            f"unknown task {shown(values.task)}{meant(values.task, TASKS)}; the tasks are"
            f" {', '.join(TASKS)}",
            "task",
        )
    task = TASKS[values.task]
    try:
        parameters = parse_parameters(
            task, {name: value for name, value in fields.items() if name in PARAMETERS}
        )
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    if 0 < values.temperature < MIN_SAMPLED_TEMPERATURE:
        allowed = f"0 or from {MIN_SAMPLED_TEMPERATURE:g} to {MAX_TEMPERATURE}"
        raise InvalidRequest(
            f"temperature is {values.temperature}: it must be {allowed}", "temperature"
        )
    if values.min_precision is not None and "min_score" in values.model_fields_set:
        raise InvalidRequest("min_precision chooses the score itself: omit min_score", "min_score")
    if values.tiles != "off":
        if reason := refusal(task, parameters):
            raise InvalidRequest(reason, "tiles")
    elif unused := {"overlap", "min_object_px"} & values.model_fields_set:
        raise InvalidRequest(f"{min(unused)} needs tiles, which is off", min(unused))
    if values.temperature > 0 and (values.num_beams or 1) > 1:
        problem = f"num_beams={values.num_beams} with temperature={values.temperature}"
        raise InvalidRequest(f"{problem}: beam search needs temperature 0", "num_beams")
    return values, TaskRequest(task, parameters, values)
