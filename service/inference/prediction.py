"""One model's answer to one task: prompts and cost, the call of the runner, the parsed result.

It knows no HTTP.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from itertools import chain

from service.admission.api_keys import Quota
from service.admission.fair_queue import FairQueue
from service.errors import DeadlineExceeded, InvalidRequest, UnsupportedTask
from service.images.decoding import LazyImage, in_thread
from service.inference.request_fields import TaskRequest
from service.inference.runner_calls import RunnerClient, WrittenAnswers
from service.inference.served_models import ServedModel, proof_for
from tasks.errors import ParameterError
from tasks.errors import UnsupportedTask as TaskNotOffered
from tasks.parsing import GeneratedText
from tasks.prompts import Prompt
from tasks.results import Result, TextResult
from tasks.scores import Calibration, Guarantee, refine
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

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each stage by its name without unit."""
        return {stage.name.removesuffix("_s"): getattr(self, stage.name) for stage in fields(self)}

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds of each stage by its name without unit, for logs and answers."""
        return {stage: round(seconds * 1000, 3) for stage, seconds in self.seconds.items()}

    @classmethod
    def slowest(cls, times: Sequence["StageTimes"]) -> "StageTimes":
        """Return the longest time of each stage, of answers that were given at the same time."""
        return cls(*map(max, zip(*map(astuple, times), strict=True)))


@dataclass(frozen=True, slots=True)
class TilesSummary:
    """The tiles of an image: what was asked of the model, and what was merged."""

    rows: int
    columns: int
    asked: int
    skipped: int  # flat
    merged: int  # objects that another view found too, or a part of


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, summed over its sequences; the names are those of all interfaces."""

    image_tokens: int
    prompt_tokens: int
    generated_tokens: int  # start and end tokens included
    constrained_tokens: int  # chosen by the grammar against the model


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

    @property
    def usage(self) -> Usage:
        sequences = self.written.sequences
        return Usage(
            image_tokens=self.num_views * self.model.manifest.num_image_tokens,
            prompt_tokens=sum(written.num_prompt_tokens for written in sequences),
            generated_tokens=sum(written.num_generated_tokens for written in sequences),
            constrained_tokens=sum(written.num_constrained_tokens for written in sequences),
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a stream's text.

    In tiles it is about a view, with what was found there in pixels of the image.
    """

    text: str
    view: View | None = None


OnPiece = Callable[[Piece], None]


@dataclass(frozen=True, slots=True)
class QueuedModel:
    """A model that answers one client in its turn in the fair queue of its runner."""

    model: ServedModel
    runner: RunnerClient
    queue: FairQueue
    quota: Quota  # names the client
    deadline_s: float  # time.monotonic()
    max_tiles: int
    max_in_flight: int  # tiles
    # counts the memory of the decoded image, which is retained for later tiles; None retains none
    hold: Callable[[int], None] | None = None

    async def answer(
        self, request: TaskRequest, image: LazyImage, on_piece: OnPiece | None = None
    ) -> Answer:
        """Wait for the model's turn, and return its answer; raise `ServiceError`."""
        prompts = task_prompts(self.model, request, image.header.size_wh)
        cost = cost_tokens(self.model, request, prompts)
        async with self.queue.admitted(self.quota.name, cost, self.deadline_s) as waited_s:
            start_s = time.monotonic()
            past_span("admission", start_s - waited_s, start_s)
            try:
                async with asyncio.timeout(self.deadline_s - start_s):
                    return await self._answer(request, image, prompts, waited_s, on_piece)
            except TimeoutError as error:
                message = f"{self.model.id} did not answer before the deadline"
                raise DeadlineExceeded(message) from error

    async def _answer(
        self,
        request: TaskRequest,
        image: LazyImage,
        prompts: Sequence[Prompt],
        waited_s: float,
        on_piece: OnPiece | None,
    ) -> Answer:
        start_s = time.monotonic()
        model = self.model
        on_text = None if on_piece is None else lambda text: on_piece(Piece(text))
        timeout_s = max(0.0, self.deadline_s - start_s)
        specs = [_spec(model, request, prompts, index, timeout_s) for index in range(len(prompts))]
        written = await self.runner.write(model.manifest, image, specs, on_text)
        parse_start_s = time.monotonic()
        # Fitted on the most likely answers; a sampled one with the same score is less often right.
        is_sampled = request.fields.temperature > 0
        calibration = None if is_sampled else model.calibrations.get((request.task.id, False))
        size_wh = image.header.size_wh
        parse = partial(_parse, model, request, written, size_wh, calibration)
        # a thread takes longer to start than a short answer to parse; masks are drawn
        is_short = len(written.text) <= _MAX_SHORT_CHARS
        is_drawn = request.task.result_kind == "instances"
        with span("postprocess"):
            result = parse() if is_short and not is_drawn else await in_thread(parse)
        end_s = time.monotonic()
        times = StageTimes(
            preprocess_s=image.open_s + written.preprocess_s,
            encode_queue_s=waited_s + written.features.queue_s,
            encode_s=written.features.encode_s,
            decode_queue_s=written.queue_s,
            prefill_s=written.prefill_s,
            decode_s=written.decode_s,
            postprocess_s=end_s - parse_start_s,
            total_s=image.open_s + waited_s + end_s - start_s,
        )
        is_calibrated = calibration is not None
        return Answer(model, request, size_wh, result, written, times, is_calibrated)

    def check_cost(self, request: TaskRequest, image: LazyImage, num_views: int) -> None:
        """Raise `Overloaded` if the answers about all views would not be ready in time."""
        prompts = task_prompts(self.model, request, image.header.size_wh)
        cost = num_views * cost_tokens(self.model, request, prompts)
        self.queue.check(self.quota.name, cost, self.deadline_s)


def task_prompts(
    model: ServedModel, request: TaskRequest, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    """Return the prompts of the task.

    Raise `UnsupportedTask` or `InvalidRequest` if the model cannot answer, or if what
    `min_precision` asks for is not proved.
    """
    if request.fields.min_precision is not None:
        proof_for(model, request)
    try:
        return model.language.task_prompts(
            model.entry, request.task.id, request.parameters, image_size_wh
        )
    except TaskNotOffered as error:
        raise UnsupportedTask(str(error), error.param) from error
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error


def cost_tokens(model: ServedModel, request: TaskRequest, prompts: Sequence[Prompt]) -> int:
    """Return the estimated tokens of image, prompt and answer, for all prompts together."""
    num_new = request.fields.max_new_tokens or _TYPICAL_NEW_TOKENS
    num_characters = sum(len(segment.text) for segment in chain(*prompts))
    num_written = len(prompts) * (model.manifest.num_image_tokens + num_new)
    return num_written + num_characters // _CHARACTERS_PER_TOKEN


def _spec(
    model: ServedModel,
    request: TaskRequest,
    prompts: Sequence[Prompt],
    index: int,
    timeout_s: float,
) -> SequenceSpec:
    """Return the sequence of a prompt; if it asks for a mask, its grammar has that name alone."""
    options = request.fields
    parameters = request.parameters
    phrases = parameters.phrases or ()
    if request.task.id == "instance_segmentation" and len(phrases) == len(prompts):
        parameters = replace(parameters, phrases=None, phrase=phrases[index])
    grammar = None
    if options.constrained:
        grammar = model.language.answer_grammar(model.entry, request.task.id, parameters)
    prompt = prompts[index]
    return SequenceSpec(
        segments=[(segment.text, segment.is_control) for segment in prompt],
        max_new_tokens=options.max_new_tokens,
        num_beams=options.num_beams,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        grammar=grammar,
        adapter=model.adapter_key,
        own_token=next((segment.text for segment in prompt if segment.is_token), None),
        timeout_s=timeout_s,
    )


def _parse(
    model: ServedModel,
    request: TaskRequest,
    written: WrittenAnswers,
    size_wh: tuple[int, int],
    calibration: Calibration | None,
) -> Result:
    texts: list[GeneratedText] = []
    for sequence in written.sequences:
        ends = tuple(sequence.token_ends)
        logprobs = tuple(sequence.logprobs)
        texts.append(GeneratedText(sequence.text, ends, logprobs, sequence.finish_reason))
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
