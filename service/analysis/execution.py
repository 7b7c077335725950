"""Runs a plan about one image: each step as soon as the boxes that it is asked about are known.

Each answer is that of a single predict, or its own error. An object of a step that fails is none,
so that a failure ends only what depends on it. Cancelling ends everything.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product

from imaging.files import PixelBox
from service.admission.places import RequestContext
from service.analysis.steps import Plan, Step, StepObject, parse_plan
from service.errors import NotReady, Overloaded, ServiceError, UnsupportedImage
from service.images.decoding import ImageView, LazyImage, in_thread
from service.images.inputs import ImageInput
from service.inference.core import Core
from service.inference.prediction import Answer
from service.inference.recording import record_error
from service.inference.served_models import ServedModel
from tasks.results import (
    BoxXyxy,
    DetectionsResult,
    InstancesResult,
    Result,
    TextRegionsResult,
    TextResult,
    bounding_box,
)
from tasks.tiles.merging import placed
from wire.telemetry.tracing import span

_RESTART_S = 15.0  # a killed runner is ready again before
_RETRY_AFTER_S = 0.5
_NO_BOX = (0.0, 0.0, 0.0, 0.0)


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

    def objects(self) -> Iterator[StepObject]:
        """Yield the objects of all answers, which another step may be asked about."""
        for answer in self.answers:
            if isinstance(answer.outcome, Answer):
                yield from objects_of(answer.outcome.result)


@dataclass(frozen=True, slots=True)
class Analysis:
    """The outcomes of all steps, in the order of the request."""

    image_size_wh: tuple[int, int]
    steps: tuple[StepAnswers, ...]


OnAnswer = Callable[[StepAnswer], None]


async def analyze(
    core: Core,
    image: ImageInput,
    fields: Mapping[str, object],
    context: RequestContext,
    on_answer: OnAnswer = lambda _answer: None,
) -> Analysis:
    """Answer the `steps` of the fields; `on_answer` receives each outcome when it is there.

    Raise errors of the steps and of the image before anything runs; `Overloaded` if nothing could.
    """
    plan = parse_plan(fields, core.models, core.settings.max_steps)
    async with core.opened(image, context) as opened:
        if plan.needs_pixels_again:
            opened.hold = lambda num_bytes: core.places.hold(context, num_bytes)
        plan.check_prompts(opened.header.size_wh)
        run = _Run(core, plan, opened, context, on_answer, core.settings.max_step_answers)
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
    plan: Plan
    image: LazyImage
    context: RequestContext
    on_answer: OnAnswer
    num_left: int  # answers that the request may still have
    objects: "dict[str, asyncio.Future[list[StepObject]]]" = field(
        default_factory=dict
    )  # key: step id
    views: dict[PixelBox, ImageView] = field(default_factory=dict)
    is_first: bool = True
    give_up_s: float = math.inf  # when runners that restart are no longer waited for

    async def analysis(self) -> Analysis:
        """Run all steps; raise errors of the image, and `Overloaded` if nothing else came."""
        self.objects = {step.options.id: asyncio.Future() for step in self.plan.steps}
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(self._step(step, group)) for step in self.plan.steps]
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
        step_answers = StepAnswers(step, num_asked < len(questions), tuple(answers))
        self.objects[options.id].set_result(list(step_answers.objects()))
        return step_answers

    async def _answer(
        self, step: Step, model: ServedModel, of: int | None, about: StepObject | None
    ) -> StepAnswer:
        view = None
        if about is not None and step.options.view == "crop":
            view = crop_around(about.box, step.options.margin, self.image.header.size_wh)
            about = replace(about, box=within(about.box, view))
        outcome: Answer | ServiceError
        try:
            await self._count(view)
            outcome = await self._repeated(step, model, about, view)
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

    async def _repeated(
        self, step: Step, model: ServedModel, about: StepObject | None, view: PixelBox | None
    ) -> Answer:
        while True:
            try:
                return await self._attempt(step, model, about, view)
            except NotReady:  # the answers so far would be lost: wait for a restart
                now_s = time.monotonic()
                self.give_up_s = min(self.give_up_s, now_s + _RESTART_S)
                if now_s + _RETRY_AFTER_S >= min(self.give_up_s, self.context.deadline_s):
                    raise
            await asyncio.sleep(_RETRY_AFTER_S)

    async def _attempt(
        self, step: Step, model: ServedModel, about: StepObject | None, view: PixelBox | None
    ) -> Answer:
        image = self.image if view is None else self.views[view]
        answer = await self.core.answer(model, step.request(about), image, self.context)
        if view is None:
            return answer
        size_wh = self.image.header.size_wh
        result = await in_thread(placed, answer.result, view, size_wh)
        return replace(answer, result=result, image_size_wh=size_wh)

    async def _count(self, view: PixelBox | None) -> None:
        """Count an answer, and the pixels of a view, for the key; raise `Overloaded`."""
        if not self.is_first:  # the request itself has been counted
            await self.context.quota.take_request()
        self.is_first = False
        if view is not None and view not in self.views:
            self.views[view] = ImageView.of(self.image, view)
            await self.context.quota.take_pixels(math.prod(self.views[view].header.size_wh))


def objects_of(result: Result) -> Iterator[StepObject]:
    """Yield the objects of a result in its order; a text has none."""
    match result:
        case DetectionsResult(items) | InstancesResult(items):
            for item in items:
                yield StepObject(item.box, {"label": item.label}, item.score)
        case TextRegionsResult(regions):
            for region in regions:
                box = bounding_box(region.quad) or _NO_BOX
                yield StepObject(box, {"text": region.text}, region.score)
        case TextResult():
            return


def crop_around(box: BoxXyxy, margin: float, image_size_wh: tuple[int, int]) -> PixelBox:
    """Return the whole pixels of a box and its margin that lie in the image, at least one."""
    x1, y1, x2, y2 = box
    left, right = _side(x1, x2, margin, image_size_wh[0])
    top, bottom = _side(y1, y2, margin, image_size_wh[1])
    return left, top, right, bottom


def _side(start: float, end: float, margin: float, side_px: int) -> tuple[int, int]:
    margin_px = margin * (end - start)
    first = min(max(0, math.floor(start - margin_px)), side_px - 1)
    return first, max(first + 1, min(side_px, math.ceil(end + margin_px)))


def within(box: BoxXyxy, crop: PixelBox) -> BoxXyxy:
    """Return the part of a box that a crop shows, in pixels of the crop."""
    left, top, right, bottom = crop
    x1, x2 = (min(max(x, left), right) - left for x in (box[0], box[2]))
    y1, y2 = (min(max(y, top), bottom) - top for y in (box[1], box[3]))
    return x1, y1, x2, y2
