"""Many questions about one image in one request: steps that refer to each other's boxes.

A step has the fields of a predict, or with `models` those of a compare. `each` names a step whose
result has boxes: the step is asked about every one of them. Its strings may have `{label}` and
`{text}`, which an object of that step fills: the filled text is data, neither filled again nor read
as control tokens. The steps are a graph, which is validated as a whole before anything runs.

Each step runs as soon as the boxes that it is asked about are known. Each answer is that of a
single predict, or its own error. An object of a step that fails is none, so that a failure ends
only what depends on it. Cancelling ends everything.
"""

import asyncio
import graphlib
import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, product
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from imaging.files import PixelBox
from service.admission.places import RequestContext
from service.admission.threads import POSTPROCESSING
from service.errors import InvalidRequest, Overloaded, ServiceError, UnsupportedImage
from service.images.decoding import ImageView, LazyImage
from service.images.inputs import ImageInput
from service.inference.core import Core
from service.inference.models import ServedModel, ServedModels
from service.inference.prediction import Answer, task_prompts
from service.inference.recording import record_error
from service.inference.request_fields import (
    PARAMETERS,
    CompareFields,
    PredictFields,
    TaskRequest,
    parse_fields,
)
from service.validation import StrictModel, validated
from tasks.errors import shown
from tasks.results import BoxXyxy, Result, TextRegionsResult
from tasks.table import TASKS, Task
from tasks.tiles.merging import placed
from wire.telemetry.tracing import span

MAX_ID_CHARS = 64
MAX_EACH = 256
MAX_STEPS = 32
MAX_ANSWERS = 256  # of all steps; a step that would have more is truncated
_ID = rf"^[A-Za-z0-9_-]{{1,{MAX_ID_CHARS}}}$"
_SAMPLE_REGION = [0.0, 0.0, 1.0, 1.0]  # validates a step whose region is known later
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
        """Raise `InvalidRequest` unless `each` names a step whose boxes have the used texts."""
        names = used_names(self.fields)
        if self.options.each is None:
            if names:
                raise InvalidRequest(f"{{{min(names)}}} needs each, the step whose objects fill it")
            return
        source = by_id.get(self.options.each)
        if source is None or source.task.result_kind == "text":
            message = f"each is {shown(self.options.each)}, which is not a step with boxes"
            raise InvalidRequest(message, "each")
        allowed = "text" if source.task.result_kind == "text_regions" else "label"
        if unknown := names - {allowed}:
            message = f"{{{min(unknown)}}} is not a text of {source.options.id!r}"
            raise InvalidRequest(f"{message}; its objects fill {{{allowed}}}")


class _PlanFields(StrictModel):
    steps: list[JsonValue]
    stream: bool = False


def parse_plan(document: Mapping[str, object], models: ServedModels) -> tuple[Step, ...]:
    """Return the steps in the field `steps`; raise a `ServiceError` that names the step."""
    documents = validated(_PlanFields, document).steps
    if not 1 <= len(documents) <= MAX_STEPS:
        problem = f"steps must be a list of 1 to {MAX_STEPS} steps, not {len(documents)} steps"
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
        with _of_step(step.position, step.options.id):
            step.check_reference(by_id)
        if step.options.each is not None:
            references[step.options.id] = [step.options.each]
    try:
        graphlib.TopologicalSorter(references).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise InvalidRequest(f"steps refer to each other in a cycle: {cycle}", "steps") from error
    return tuple(by_id.values())


def _step(position: str, document: object, models: ServedModels) -> Step:
    with _of_step(position):
        if not isinstance(document, dict):
            raise InvalidRequest(f"must be an object, not {shown(document)}")
        fields = dict(document)
        names = StepFields.model_fields.keys() & fields.keys()
        options = validated(StepFields, {name: fields.pop(name) for name in names})
    with _of_step(position, options.id):
        for name in ("view", "margin", "max_each"):
            if options.each is None and name in names:
                raise InvalidRequest(f"{name} needs each", name)
        if options.each is not None and "min_precision" in fields:
            message = "min_precision is proved about images, not about the boxes of each"
            raise InvalidRequest(message, "min_precision")
        if "stream" in fields:
            raise InvalidRequest("stream is a field of the whole request", "stream")
        has_region = options.each is not None and _takes_region(fields)
        common, request = _parsed(fields | {"region": _SAMPLE_REGION} if has_region else fields)
        if isinstance(common, CompareFields):
            step_models = models.compared(common.models, request.task.id)
        else:
            step_models = (models.chosen(common.model, request.task.id),)
    return Step(options, fields, request.task, step_models, has_region, position)


@contextmanager
def _of_step(position: str, step_id: str = "") -> Iterator[None]:
    try:
        yield
    except ServiceError as error:
        where = f"{position} ({step_id})" if step_id else position
        param = position if error.param is None else f"{position}.{error.param}"
        raise type(error)(f"{where}: {error.message}", param, error.code) from error


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


def used_names(fields: Mapping[str, object]) -> set[str]:
    texts = [fields[name] for name in _TEXT_FIELDS & fields.keys()]
    return set(_NAME.findall(json.dumps(texts)))


def filled(fields: Mapping[str, object], values: Mapping[str, str]) -> dict[str, object]:
    def fill(value: object) -> object:
        if isinstance(value, list):
            return list(map(fill, value))
        return _NAME.sub(lambda match: values[match[1]], value) if isinstance(value, str) else value

    texts = {name: fill(fields[name]) for name in _TEXT_FIELDS & fields.keys()}
    return {**fields, **texts}


@dataclass(frozen=True, slots=True)
class StepAnswer:
    """The outcome of one model about the image, or about one object of another step."""

    step_id: str
    of: int | None  # index among the objects of the step that `each` names, over all its answers
    view: PixelBox | None  # the part of the image that was asked about, if not all of it
    model: ServedModel
    outcome: Answer | ServiceError


@dataclass(frozen=True, slots=True)
class StepAnswers:
    """The outcomes of a step: of the object with the best score first, models in catalog order."""

    step: Step
    is_truncated: bool  # more objects than `max_each`, or than the request may have answers
    answers: tuple[StepAnswer, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The outcomes of all steps, in the order of the request."""

    image_size_wh: tuple[int, int]
    steps: tuple[StepAnswers, ...]


def check_prompts(steps: Sequence[Step], size_wh: tuple[int, int]) -> None:
    """Raise the error of a predict that its model does not offer in this variant."""
    box = (0.0, 0.0, float(size_wh[0]), float(size_wh[1]))
    anything = StepObject(box, {"label": "{label}", "text": "{text}"}, 0.0)
    for step in steps:
        if "models" not in step.fields:  # each of several has its own error
            with _of_step(step.position, step.options.id):
                request = step.request(None if step.options.each is None else anything)
                task_prompts(step.models[0], request, size_wh)


def needs_pixels_again(steps: Sequence[Step]) -> bool:
    """Return True for crops, and for a further runner, which has other pixels."""
    models = chain.from_iterable(step.models for step in steps)
    runners = {model.backend_id for model in models}
    return len(runners) > 1 or any(step.options.view == "crop" for step in steps)


OnAnswer = Callable[[StepAnswer], None]


async def analyze(
    core: Core,
    image: ImageInput,
    fields: Mapping[str, object],
    context: RequestContext,
    on_answer: OnAnswer = lambda _answer: None,
    max_answers: int = MAX_ANSWERS,
) -> Analysis:
    """Answer the `steps` of the fields; `on_answer` receives each outcome when it is there.

    Raise errors of the steps and of the image before anything runs; `Overloaded` if nothing could.
    """
    steps = parse_plan(fields, core.models)
    async with core.opened(image, context) as opened:
        if needs_pixels_again(steps):
            opened.hold = lambda num_bytes: core.places.hold(context, num_bytes)
        check_prompts(steps, opened.header.size_wh)
        run = _Run(core, steps, opened, context, on_answer, max_answers)
        return await run.analysis()


def stream_analysis(
    core: Core, image: ImageInput, fields: Mapping[str, object], context: RequestContext
) -> AsyncGenerator[StepAnswer | Analysis, None]:
    """Yield each outcome of `analyze` when it is there, then the analysis.

    Closing the generator cancels the request.
    """
    return core.streamed(lambda send: analyze(core, image, fields, context, send), context)


@dataclass(slots=True)
class _Run:
    core: Core
    steps: tuple[Step, ...]
    image: LazyImage
    context: RequestContext
    on_answer: OnAnswer
    num_left: int  # answers that the request may still have
    # key: step id
    objects: "dict[str, asyncio.Future[list[StepObject]]]" = field(default_factory=dict)
    views: dict[PixelBox, ImageView] = field(default_factory=dict)
    is_first: bool = True

    async def analysis(self) -> Analysis:
        """Run all steps; raise errors of the image, and `Overloaded` if nothing else came."""
        self.objects = {step.options.id: asyncio.Future() for step in self.steps}
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(self._step(step, group)) for step in self.steps]
        except ExceptionGroup as errors:  # about the image, which concerns all steps, or a defect
            raise errors.exceptions[0] from None
        steps = tuple(task.result() for task in running)
        answers = list(chain.from_iterable(step.answers for step in steps))
        refusals = [answer.outcome for answer in answers if isinstance(answer.outcome, Overloaded)]
        if refusals and len(refusals) == len(answers):
            raise refusals[0]
        return Analysis(self.image.header.size_wh, steps)

    async def _step(self, step: Step, group: asyncio.TaskGroup) -> StepAnswers:
        options = step.options
        questions: Sequence[tuple[int | None, StepObject | None]] = [(None, None)]
        if options.each is not None:
            numbered = list(enumerate(await self.objects[options.each]))
            numbered.sort(key=lambda pair: -pair[1].score)
            questions = numbered
        with span("analyze step", {"diptych.step": options.id, "diptych.task": step.task.id}):
            num_asked = min(len(questions), options.max_each, self.num_left // len(step.models))
            self.num_left -= num_asked * len(step.models)
            answering: list[asyncio.Task[StepAnswer]] = []
            for (index, about), model in product(questions[:num_asked], step.models):
                answering.append(group.create_task(self._answer(step, model, index, about)))
            answers = await asyncio.gather(*answering)
        objects: list[StepObject] = []
        for answer in answers:
            if isinstance(answer.outcome, Answer):
                objects += step_objects(answer.outcome.result)
        self.objects[options.id].set_result(objects)
        return StepAnswers(step, num_asked < len(questions), tuple(answers))

    async def _answer(
        self, step: Step, model: ServedModel, of: int | None, about: StepObject | None
    ) -> StepAnswer:
        view = None
        size_wh = self.image.header.size_wh
        if about is not None and step.options.view == "crop":
            view = crop_around(about.box, step.options.margin, size_wh)
            about = replace(about, box=within(about.box, view))
        outcome: Answer | ServiceError
        try:
            self._count(view)
            image = self.image if view is None else self.views[view]
            outcome = await self.core.answer(model, step.request(about), image, self.context)
            if view is not None:
                result = await POSTPROCESSING.run(placed, outcome.result, view, size_wh)
                outcome = replace(outcome, result=result, image_size_wh=size_wh)
        except UnsupportedImage:
            raise
        except ServiceError as error:
            outcome = error
            error.model = model.id
            error.task = step.task.id
            record_error(error, self.context.api, self.context.request_id)
        answer = StepAnswer(step.options.id, of, view, model, outcome)
        self.on_answer(answer)
        return answer

    def _count(self, view: PixelBox | None) -> None:
        """Count an answer, and the pixels of a view, for the key; raise `Overloaded`."""
        if not self.is_first:  # the request itself has been counted
            self.context.quota.take_request()
        self.is_first = False
        if view is not None and view not in self.views:
            self.views[view] = ImageView.of(self.image, view)
            self.context.quota.take_pixels(math.prod(self.views[view].header.size_wh))


def step_objects(result: Result) -> list[StepObject]:
    name = "text" if isinstance(result, TextRegionsResult) else "label"
    objects: list[StepObject] = []
    for item in result.items:
        objects.append(StepObject(item.box, {name: item.label}, item.rank))
    return objects


def crop_around(box: BoxXyxy, margin: float, image_size_wh: tuple[int, int]) -> PixelBox:
    """Return the whole pixels of a box and its margin that lie in the image, at least one."""
    firsts: list[int] = []
    lasts: list[int] = []
    for start, end, side_px in zip(box[:2], box[2:], image_size_wh, strict=True):
        margin_px = margin * (end - start)
        firsts.append(min(max(0, math.floor(start - margin_px)), side_px - 1))
        lasts.append(max(firsts[-1] + 1, min(side_px, math.ceil(end + margin_px))))
    return firsts[0], firsts[1], lasts[0], lasts[1]


def within(box: BoxXyxy, crop: PixelBox) -> BoxXyxy:
    """Return the part of a box that a crop shows, in pixels of the crop."""
    left, top, right, bottom = crop
    x1, x2 = (min(max(x, left), right) - left for x in (box[0], box[2]))
    y1, y2 = (min(max(y, top), bottom) - top for y in (box[1], box[3]))
    return x1, y1, x2, y2
