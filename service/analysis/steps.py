"""The steps of an analysis as a graph, validated as a whole before anything runs.

A step has the fields of a predict, or with `models` those of a compare. `each` names a step whose
result has boxes: the step is asked about every one of them. Its strings may have `{label}` and
`{text}`, which an object of that step fills: the filled text is data, neither filled again nor read
as control tokens. Knows no image.
"""

import graphlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from service.errors import InvalidRequest, ServiceError
from service.inference.prediction import task_prompts
from service.inference.request_fields import (
    PARAMETERS,
    CompareFields,
    PredictFields,
    TaskRequest,
    parse_fields,
)
from service.inference.served_models import ServedModel, ServedModels
from service.validation import StrictModel, validated
from tasks.errors import shown
from tasks.results import BoxXyxy
from tasks.table import TASKS, ResultKind, Task

MAX_ID_CHARS = 64
MAX_EACH = 256
_ID = rf"^[A-Za-z0-9_-]{{1,{MAX_ID_CHARS}}}$"
_SAMPLE_REGION = [0.0, 0.0, 1.0, 1.0]  # validates a step whose region is known later
# the names that the objects of each kind of result can fill
_NAMES_OF: Mapping[ResultKind, frozenset[str]] = {
    "text": frozenset(),
    "detections": frozenset({"label"}),
    "instances": frozenset({"label"}),
    "text_regions": frozenset({"text"}),
}
_NAME = re.compile(r"\{(label|text)\}")
_TEXT_FIELDS = frozenset(name for name, parameter in PARAMETERS.items() if parameter.is_text)


class StepFields(StrictModel):
    """Fields of a step besides those of its predict or compare."""

    id: Annotated[str, Field(pattern=_ID, max_length=MAX_ID_CHARS)]
    """Name of the step, unique in the request."""
    each: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = None
    """Id of a step with boxes; this step is asked about each of them."""
    view: Literal["whole", "crop"] = "whole"
    """crop asks about the box as a separate image, at full resolution."""
    margin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Added to each side of a crop, as a share of the box."""
    max_each: Annotated[int, Field(ge=1, le=MAX_EACH)] = 50
    """Maximum number of boxes, those of the best score first."""


@dataclass(frozen=True, slots=True)
class StepObject:
    """An object of a result: its box in pixels, and texts that fill the templates of steps."""

    box: BoxXyxy
    texts: Mapping[str, str]  # key: label or text
    score: float


@dataclass(frozen=True, slots=True)
class Step:
    """A validated step; `fields` are those of its predict or compare, with templates."""

    options: StepFields
    fields: Mapping[str, object]
    task: Task
    models: tuple[ServedModel, ...]  # asked at the same time
    has_region: bool  # its box is the `region` of the task
    position: str  # such as steps[0]

    def request(self, about: StepObject | None) -> TaskRequest:
        """Return the request about a box, or about the image; raise `InvalidRequest`."""
        fields = dict(self.fields)
        if about is not None:
            fields = filled(fields, about.texts)
            if self.has_region:
                fields["region"] = list(about.box)
        return _parsed(fields)[1]

    def check_reference(self, by_id: Mapping[str, "Step"]) -> None:
        """Raise `InvalidRequest` unless `each` names a step whose boxes this one uses."""
        names = used_names(self.fields)
        where = f"{self.position} ({self.options.id})"
        if self.options.each is None:
            if names:
                message = f"{where}: {{{min(names)}}} needs each, the step whose objects fill it"
                raise InvalidRequest(message, self.position)
            return
        source = by_id.get(self.options.each)
        param = f"{self.position}.each"
        if source is None:
            problem = f"{where}: each is {shown(self.options.each)}, which is not a step"
            raise InvalidRequest(f"{problem}; the steps are {', '.join(by_id)}", param)
        if source.task.result_kind == "text":
            message = (
                f"{where}: each is {source.options.id!r}, whose task {source.task.id} has no boxes"
            )
            raise InvalidRequest(message, param)
        allowed = _NAMES_OF[source.task.result_kind]
        if unknown := names - allowed:
            message = f"{where}: {{{min(unknown)}}} is not a text of {source.options.id!r}"
            can_fill = " and ".join(f"{{{name}}}" for name in sorted(allowed))
            raise InvalidRequest(f"{message}; its objects fill {can_fill}", self.position)
        if not (names or self.has_region or self.options.view == "crop"):
            message = f"{where}: every box of {source.options.id!r} would get the same answer"
            raise InvalidRequest(f"{message}; use view crop, or {{label}} in a string", param)


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, in the order in which they were sent; each refers to a step of the plan."""

    steps: tuple[Step, ...]

    @property
    def needs_pixels_again(self) -> bool:
        """Return True for crops, and for a further runner, which has other pixels."""
        models = chain.from_iterable(step.models for step in self.steps)
        runners = {model.runner_id for model in models}
        return len(runners) > 1 or any(step.options.view == "crop" for step in self.steps)

    def check_prompts(self, size_wh: tuple[int, int]) -> None:
        """Raise the error of a predict that its model does not offer in this variant."""
        width, height = size_wh
        unfilled = {"label": "{label}", "text": "{text}"}
        anything = StepObject((0.0, 0.0, float(width), float(height)), unfilled, 0.0)
        for step in self.steps:
            if "models" in step.fields:  # each of them has its own error
                continue
            try:
                request = step.request(None if step.options.each is None else anything)
                task_prompts(step.models[0], request, size_wh)
            except ServiceError as error:
                raise _of_step(error, step.position, step.options.id) from error


class _PlanFields(StrictModel):
    steps: list[JsonValue]
    stream: bool = False


def parse_plan(document: Mapping[str, object], models: ServedModels, max_steps: int) -> Plan:
    """Return the plan in the field `steps`.

    Raise `InvalidRequest`, `UnsupportedTask` or `UnknownModel`, which name the step.
    """
    documents = validated(_PlanFields, document).steps
    if not 1 <= len(documents) <= max_steps:
        problem = f"steps must be a list of 1 to {max_steps} steps, not {len(documents)} steps"
        raise InvalidRequest(problem, "steps")
    by_id: dict[str, Step] = {}
    for index, step_document in enumerate(documents):
        step = _step(f"steps[{index}]", step_document, models)
        if step.options.id in by_id:
            message = f"{step.position}: the id {step.options.id!r} is repeated; ids must be unique"
            raise InvalidRequest(message, f"{step.position}.id")
        by_id[step.options.id] = step
    references: dict[str, list[str]] = {}
    for step in by_id.values():
        step.check_reference(by_id)
        if step.options.each is not None:
            references[step.options.id] = [step.options.each]
    try:
        graphlib.TopologicalSorter(references).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        position = by_id[error.args[1][0]].position
        message = f"steps refer to each other in a cycle: {cycle}; each must name another result"
        raise InvalidRequest(message, f"{position}.each") from error
    return Plan(tuple(by_id.values()))


def _step(position: str, document: object, models: ServedModels) -> Step:
    if not isinstance(document, dict):
        raise InvalidRequest(f"{position} must be an object, not {shown(document)}", position)
    fields = dict(document)
    option_values = {name: fields.pop(name) for name in StepFields.model_fields if name in fields}
    try:
        options = validated(StepFields, option_values)
    except InvalidRequest as error:
        raise _of_step(error, position) from error
    unused = {"view", "margin", "max_each"} & options.model_fields_set
    if options.each is None and unused:
        name = min(unused)
        raise InvalidRequest(f"{position}: {name} needs each", f"{position}.{name}")
    if options.each is not None and "min_precision" in fields:
        message = f"{position}: min_precision is proved about images, not about the boxes of each"
        raise InvalidRequest(message, f"{position}.min_precision")
    if "stream" in fields:
        message = f"{position}: unknown field 'stream'; it is a field of the whole request"
        raise InvalidRequest(message, f"{position}.stream")
    try:
        has_region = options.each is not None and _takes_region(fields)
        sample = fields | {"region": _SAMPLE_REGION} if has_region else fields
        common, request = _parsed(sample)
        if isinstance(common, CompareFields):
            step_models = models.compared(common.models, request.task.id)
        else:
            step_models = (models.chosen(common.model, request.task.id),)
    except ServiceError as error:
        raise _of_step(error, position, options.id) from error
    return Step(options, fields, request.task, step_models, has_region, position)


def _of_step(error: ServiceError, position: str, step_id: str | None = None) -> ServiceError:
    """Return the error of a step's fields as one of the request, which names the step."""
    where = position if step_id is None else f"{position} ({step_id})"
    param = position if error.param is None else f"{position}.{error.param}"
    return type(error)(f"{where}: {error.message}", param)


def _takes_region(fields: Mapping[str, object]) -> bool:
    """Return True if the task has a region, and a step gives neither it nor an alternative."""
    task = TASKS.get(str(fields.get("task")))
    if task is None or "region" not in (parameter.name for parameter in task.parameters):
        return False
    return "region" not in fields and not fields.keys() & set(task.exactly_one_of)


def _parsed(fields: Mapping[str, object]) -> tuple[PredictFields | CompareFields, TaskRequest]:
    if "models" in fields:
        return parse_fields(CompareFields, fields)
    return parse_fields(PredictFields, fields)


def used_names(fields: Mapping[str, object]) -> frozenset[str]:
    """Return the names that the strings of a step use."""
    names: set[str] = set()
    for text in _texts(fields):
        names.update(_NAME.findall(text))
    return frozenset(names)


def filled(fields: Mapping[str, object], values: Mapping[str, str]) -> dict[str, object]:
    """Return the fields with every used name replaced by its value."""

    def fill(value: object) -> object:
        if not isinstance(value, str):
            return value
        return _NAME.sub(lambda match: values[match[1]], value)

    document = dict(fields)
    for name in _TEXT_FIELDS & fields.keys():
        value = fields[name]
        document[name] = list(map(fill, value)) if isinstance(value, list) else fill(value)
    return document


def _texts(fields: Mapping[str, object]) -> Iterator[str]:
    for name in _TEXT_FIELDS & fields.keys():
        value = fields[name]
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield text
