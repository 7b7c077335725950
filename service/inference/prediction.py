"""One model's answer to one task: prompts and cost, the call of the runner, the parsed result.

It knows no HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain

from service.admission.fair_queue import FairQueue, QueuedRequest
from service.errors import DeadlineExceeded, InvalidRequest, UnsupportedTask
from service.images.decoding import LazyImage, in_thread
from service.inference.proofs import proof_for
from service.inference.request_fields import TaskRequest
from service.inference.served_models import ServedModel
from service.runner_client.joined_calls import JoinedCalls
from service.runner_client.runner_client import RunnerClient, WrittenAnswers
from service.runner_client.stream_replay import OnText
from tasks.errors import ParameterError, UnsupportedVariant
from tasks.errors import UnsupportedTask as TaskNotOffered
from tasks.generation import GeneratedText
from tasks.prompts import Prompt
from tasks.results import Result, TextResult
from tasks.scores import Calibration, Guarantee, keep_proved, refine
from tasks.tiles.merging import View
from wire.runner_messages import SequenceSpec
from wire.telemetry.tracing import past_span, span

_CHARACTERS_PER_TOKEN = 4  # English text; only runners have tokenizers
# Estimate if max_new_tokens is unset: a checkpoint's own limit is far above its usual answers
_TYPICAL_NEW_TOKENS = 256
_MAX_SHORT_CHARS = 1000


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of each stage of an answer."""

    preprocess_s: float
    encode_queue_s: float
    encode_s: float
    decode_queue_s: float
    prefill_s: float
    decode_s: float
    postprocess_s: float
    total_s: float
    # milliseconds of each stage by its name without unit, for logs and answers
    ms: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        seconds = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        ms = {name.removesuffix("_s"): round(value * 1000, 3) for name, value in seconds.items()}
        object.__setattr__(self, "ms", ms)

    @classmethod
    def slowest(cls, times: Sequence["StageTimes"]) -> "StageTimes":
        """Return the longest time of each stage, of answers that were given at the same time."""
        longest: dict[str, float] = {}
        for stage in fields(cls):
            if stage.init:
                longest[stage.name] = max(getattr(each, stage.name) for each in times)
        return cls(**longest)


@dataclass(frozen=True, slots=True)
class TilesSummary:
    """The tiles of an image: what was asked of the model, and what was merged."""

    rows: int
    columns: int
    asked: int
    skipped: int  # flat
    merged: int  # objects that another view found too, or a part of


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer, before an interface renders it."""

    model: ServedModel
    request: TaskRequest
    image_size_wh: tuple[int, int]
    result: Result
    written: WrittenAnswers
    times: StageTimes
    is_calibrated: bool = False  # scores are probabilities
    tiles: TilesSummary | None = None
    num_views: int = 1  # the whole image, and the tiles that were asked about
    guarantee: Guarantee | None = None  # set with `min_precision`


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a stream's text.

    In tiles it is about a view, with what was found there in pixels of the image.
    """

    text: str
    view: View | None = None


OnPiece = Callable[[Piece], None]


@dataclass(frozen=True, slots=True)
class PredictContext:
    """Prompts, deadline and queueing time of one prediction."""

    prompts: tuple[Prompt, ...]
    deadline_s: float  # time.monotonic()
    waited_s: float = 0.0  # spent in the fair queue
    on_text: OnText | None = None  # receives the text as it is written


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that is asked for one client, in the fair queue of its runner."""

    model: ServedModel
    runner: RunnerClient | JoinedCalls
    queue: FairQueue
    client: str
    deadline_s: float  # time.monotonic()

    async def answer(
        self, request: TaskRequest, image: LazyImage, on_piece: OnPiece | None = None
    ) -> Answer:
        """Wait for the model's turn, and return its answer; raise `ServiceError`."""
        prompts = task_prompts(self.model, request, image.header.size_wh)
        cost = cost_tokens(self.model, request, prompts)
        queued = QueuedRequest(self.client, cost, self.deadline_s)
        on_text = None if on_piece is None else lambda text: on_piece(Piece(text))
        async with self.queue.admitted(queued) as waited_s:
            past_span("admission", (now_s := time.monotonic()) - waited_s, now_s)
            context = PredictContext(prompts, self.deadline_s, waited_s, on_text)
            return await predict(self.model, self.runner, request, image, context)

    def check_cost(self, request: TaskRequest, image: LazyImage, num_views: int) -> None:
        """Raise `Overloaded` if the answers about all views would not be ready in time."""
        prompts = task_prompts(self.model, request, image.header.size_wh)
        cost = num_views * cost_tokens(self.model, request, prompts)
        self.queue.check(QueuedRequest(self.client, cost, self.deadline_s))


async def predict(
    model: ServedModel,
    runner: RunnerClient | JoinedCalls,
    request: TaskRequest,
    image: LazyImage,
    context: PredictContext,
) -> Answer:
    """Answer `request` with `model`; raise `ServiceError`."""
    start_s = time.monotonic() - context.waited_s - image.open_s
    size_wh = image.header.size_wh
    task_id = request.task.id
    # Fitted on the most likely answers; a sampled one with the same score is less often right.
    calibration = None if request.fields.temperature else model.calibrations.get((task_id, False))
    try:
        async with asyncio.timeout(context.deadline_s - time.monotonic()):
            written = await runner.write(
                model.manifest, image, _specs(model, request, context), context.on_text
            )
            with span("postprocess"):
                parse_start_s = time.monotonic()
                parsing = (model, request, written, size_wh, calibration)
                # a thread takes longer to start than a short answer to parse; masks are drawn
                is_short = len(written.text) <= _MAX_SHORT_CHARS
                if is_short and request.task.result_kind != "instances":
                    result = _parse(*parsing)
                else:
                    result = await in_thread(_parse, *parsing)
                postprocess_s = time.monotonic() - parse_start_s
    except TimeoutError as error:
        raise DeadlineExceeded(f"{model.id} did not answer before the deadline") from error
    times = StageTimes(
        preprocess_s=image.open_s + written.preprocess_s,
        encode_queue_s=context.waited_s + written.features.queue_s,
        encode_s=written.features.encode_s,
        decode_queue_s=written.queue_s,
        prefill_s=written.prefill_s,
        decode_s=written.decode_s,
        postprocess_s=postprocess_s,
        total_s=time.monotonic() - start_s,
    )
    return Answer(
        model, request, size_wh, result, written, times, is_calibrated=calibration is not None
    )


def proved(answer: Answer) -> Answer:
    """Return an answer with the objects that the proof for its request keeps."""
    proof = proof_for(answer.model.id, answer.model.proofs, answer.request)
    result, guarantee = keep_proved(answer.result, proof)
    return replace(answer, result=result, guarantee=guarantee)


def task_prompts(
    model: ServedModel, request: TaskRequest, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    """Return the prompts of the task; raise `UnsupportedTask` or `InvalidRequest`.

    Both tell that the model cannot answer, or that what `min_precision` asks for is not proved.
    """
    if request.fields.min_precision is not None:
        proof_for(model.id, model.proofs, request)
    try:
        return model.language.task_prompts(
            model.entry, request.task.id, request.parameters, image_size_wh
        )
    except TaskNotOffered as error:
        raise UnsupportedTask(str(error), "task") from error
    except UnsupportedVariant as error:
        raise UnsupportedTask(str(error), error.param) from error
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error


def cost_tokens(model: ServedModel, request: TaskRequest, prompts: Sequence[Prompt]) -> int:
    """Return the estimated tokens of image, prompt and answer, for all prompts together."""
    num_new = request.fields.max_new_tokens or _TYPICAL_NEW_TOKENS
    num_characters = sum(len(segment.text) for segment in chain(*prompts))
    return (
        len(prompts) * (model.manifest.num_image_tokens + num_new)
        + num_characters // _CHARACTERS_PER_TOKEN
    )


def _specs(model: ServedModel, request: TaskRequest, context: PredictContext) -> list[SequenceSpec]:
    options = request.fields
    grammar = (
        model.language.answer_grammar(model.entry, request.task.id, request.parameters)
        if options.constrained
        else None
    )
    specs: list[SequenceSpec] = []
    for prompt in context.prompts:
        segments = [(segment.text, segment.is_control) for segment in prompt]
        spec = SequenceSpec(
            segments=segments,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            grammar=grammar,
            adapter=model.adapter_key,
            own_token=next((segment.text for segment in prompt if segment.is_token), None),
            timeout_s=max(0.0, context.deadline_s - time.monotonic()),
        )
        specs.append(spec)
    return specs


def _parse(
    model: ServedModel,
    request: TaskRequest,
    written: WrittenAnswers,
    size_wh: tuple[int, int],
    calibration: Calibration | None,
) -> Result:
    texts = [
        GeneratedText(s.text, tuple(s.token_ends), tuple(s.logprobs), s.finish_reason)
        for s in written.sequences
    ]
    result = model.language.parse_answer(
        model.entry,
        request.task.id,
        request.parameters,
        texts,
        size_wh,
        request.fields.mask_format,
        model.mask_decoder,
        model.banned_phrases,
    )
    if isinstance(result, TextResult):
        return result
    return refine(result, calibration, request.fields.min_score, request.fields.nms_iou)
