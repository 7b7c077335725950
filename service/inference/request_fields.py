"""The fields of a request to typed values: the one validation of every interface.

Fields come as JSON types. A field that the endpoint or the task does not know is an error that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest
from service.validation import rejected_field
from tasks.errors import ParameterError, shown
from tasks.parameters import TaskParameters, parse_parameters
from tasks.results import MaskFormat
from tasks.table import TASKS, Task

MAX_NEW_TOKENS = 4096
MAX_BEAMS = 10
_MAX_SHOWN_CHARS = 80

PARAMETER_NAMES = frozenset(parameter.name for task in TASKS.values() for parameter in task.parameters)


class GenerationFields(BaseModel):
    """The fields that every endpoint takes beside the task's parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: str = Field(description="Task id, see GET /v1/tasks.")
    max_new_tokens: int | None = Field(
        None, ge=1, le=MAX_NEW_TOKENS, description="Most tokens to write; default is the checkpoint's own setting."
    )
    num_beams: int | None = Field(
        None,
        ge=1,
        le=MAX_BEAMS,
        description="Beams of a search, 1 is none; default is the checkpoint's own setting. Only with temperature 0.",
    )
    temperature: float = Field(0.0, ge=0, le=2, description="0 takes the likeliest token; above 0 samples.")
    top_p: float = Field(1.0, gt=0, le=1, description="Samples from the likeliest tokens with this share together.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Makes sampling repeatable.")
    constrained: bool = Field(True, description="Only well-formed answers are written, where the task has such a form.")
    mask_format: MaskFormat = Field("polygon", description="polygon, or rle for COCO's run lengths.")


class PredictFields(GenerationFields):
    """Fields of POST /v1/predict."""

    model: str | None = Field(None, description="Model id; default is the first that offers the task.")
    stream: bool = Field(False, description="true answers server-sent events: text as it is written, then the answer.")


class CompareFields(GenerationFields):
    """Fields of POST /v1/compare."""

    models: Annotated[list[str], Field(min_length=1, max_length=32)] | None = Field(
        None, description="Model ids; default is all that offer the task."
    )


FieldsT = TypeVar("FieldsT", bound=GenerationFields)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How an answer is written; None is the checkpoint's own setting."""

    max_new_tokens: int | None = None
    num_beams: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    is_constrained: bool = True


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What a model is asked to do with an image."""

    task: Task
    parameters: TaskParameters
    mask_format: MaskFormat
    options: GenerationOptions


def parse_fields(fields_class: type[FieldsT], fields: Mapping[str, object]) -> tuple[FieldsT, TaskRequest]:
    """Return the checked fields of an endpoint and the task that they ask for; raise `InvalidRequest`."""
    _check_names(fields_class, fields)
    common = _validate(fields_class, {name: value for name, value in fields.items() if name not in PARAMETER_NAMES})
    if common.task not in TASKS:
        raise InvalidRequest(f"task {shown(common.task)} does not exist; the tasks are {', '.join(TASKS)}", "task")
    task = TASKS[common.task]
    try:
        parameters = parse_parameters(task, {name: fields[name] for name in fields if name in PARAMETER_NAMES})
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    return common, TaskRequest(task, parameters, common.mask_format, _generation_options(common))


def _generation_options(fields: GenerationFields) -> GenerationOptions:
    if fields.temperature > 0 and (fields.num_beams or 1) > 1:
        message = f"num_beams is {fields.num_beams} at temperature {fields.temperature}; beams need temperature 0"
        raise InvalidRequest(message, "num_beams")
    return GenerationOptions(
        fields.max_new_tokens, fields.num_beams, fields.temperature, fields.top_p, fields.seed, fields.constrained
    )


def _check_names(fields_class: type[BaseModel], fields: Mapping[str, object]) -> None:
    known = fields_class.model_fields
    for name in fields:
        if name not in known and name not in PARAMETER_NAMES:
            allowed = ", ".join(["image", *known, *sorted(PARAMETER_NAMES)])
            # a lone surrogate cannot be sent back
            param = name[:_MAX_SHOWN_CHARS].encode(errors="replace").decode()
            raise InvalidRequest(f"unknown field {shown(name)}; the fields are {allowed}", param)


def _validate(fields_class: type[FieldsT], fields: Mapping[str, object]) -> FieldsT:
    try:
        return fields_class.model_validate(fields)
    except ValidationError as error:
        rejected = rejected_field(error)
        raise InvalidRequest(rejected.message, rejected.name.partition(".")[0]) from error
