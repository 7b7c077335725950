"""One model's answer to one task: resize, encode, write, parse. Knows no HTTP."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from runners.messages import SequenceSpec, Written
from runners.tracing import span
from service.errors import DeadlineExceeded, InvalidRequest, UnsupportedTask
from service.images import RgbImage, resize
from service.requests import TaskRequest
from service.runner_client import RunnerClient, WrittenAnswers
from service.served_models import ServedModel
from service.text_in_order import TextListener
from service.threads import in_thread
from service.vision_cache import CacheOutcome
from tasks.errors import ParameterError, UnsupportedVariant
from tasks.errors import UnsupportedTask as TaskNotOffered
from tasks.generation import GeneratedText
from tasks.prompts import Prompt
from tasks.results import Result

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of each stage of one answer."""

    preprocess_s: float
    encode_queue_s: float
    encode_s: float
    decode_queue_s: float
    prefill_s: float
    decode_s: float
    postprocess_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model answered."""

    model: ServedModel
    request: TaskRequest
    image_size_wh: tuple[int, int]
    result: Result
    sequences: tuple[Written, ...]
    vision_cache: CacheOutcome
    times: StageTimes


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a prediction is told beside its question."""

    deadline_s: float  # on the clock of time.monotonic()
    waited_s: float = 0.0  # for its turn
    on_text: TextListener | None = None  # hears the text as it is written


async def predict(
    model: ServedModel, runners: RunnerClient, request: TaskRequest, image: RgbImage, told: Circumstances
) -> Answer:
    """Answer `request` with `model`; raise an error of the service's tree."""
    start_s, deadline_s = time.monotonic() - told.waited_s - image.decode_s, told.deadline_s
    prompts = task_prompts(model, request, image.size_wh)
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            with span("preprocess"):
                size_wh, resample = model.manifest.image_size_wh, model.manifest.resample
                pixels, preprocess_s = await _timed(resize, image, size_wh, resample)
            with span("encode") as encoding:
                encoded = await runners.encode(pixels)
                encoding.set_attribute("diptych.vision_cache", encoded.outcome)
            with span("decode"):
                specs = _specs(model, prompts, request, deadline_s)
                written = await runners.write(encoded.image_features, specs, told.on_text)
            with span("postprocess"):
                result, postprocess_s = await _timed(_parse, model, request, written, image)
    except TimeoutError as error:
        raise DeadlineExceeded(f"{model.id} did not answer in the time of the request") from error
    times = StageTimes(
        preprocess_s=image.decode_s + preprocess_s,
        encode_queue_s=told.waited_s + encoded.queue_s,
        encode_s=encoded.encode_s,
        decode_queue_s=written.queue_s,
        prefill_s=written.prefill_s,
        decode_s=written.decode_s,
        postprocess_s=postprocess_s,
        total_s=time.monotonic() - start_s,
    )
    return Answer(model, request, image.size_wh, result, written.sequences, encoded.outcome, times)


def task_prompts(model: ServedModel, request: TaskRequest, image_size_wh: tuple[int, int]) -> tuple[Prompt, ...]:
    """Return the prompts of the task; raise `UnsupportedTask` or `InvalidRequest` before any work is done."""
    try:
        return model.language.task_prompts(model.entry, request.task.id, request.parameters, image_size_wh)
    except TaskNotOffered as error:
        raise UnsupportedTask(str(error), "task") from error
    except UnsupportedVariant as error:
        raise UnsupportedTask(str(error), error.param) from error
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error


def _specs(
    model: ServedModel, prompts: tuple[Prompt, ...], request: TaskRequest, deadline_s: float
) -> list[SequenceSpec]:
    options = request.options
    grammar = model.language.answer_grammar(request.task.id, request.parameters) if options.is_constrained else None
    return [
        SequenceSpec(
            segments=[(segment.text, segment.is_control) for segment in prompt],
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            grammar=grammar,
            timeout_s=max(0.0, deadline_s - time.monotonic()),
        )
        for prompt in prompts
    ]


def _parse(model: ServedModel, request: TaskRequest, written: WrittenAnswers, image: RgbImage) -> Result:
    texts = [GeneratedText(s.text, tuple(s.token_ends), tuple(s.logprobs), s.finish_reason) for s in written.sequences]
    return model.language.parse_answer(
        request.task.id, request.parameters, texts, image.size_wh, request.mask_format, model.mask_decoder
    )


async def _timed(
    function: Callable[ParamsT, ResultT], *args: ParamsT.args, **kwargs: ParamsT.kwargs
) -> tuple[ResultT, float]:
    """Run `function` in a thread, off the event loop; return its result and its seconds."""
    start_s = time.monotonic()
    result = await in_thread(function, *args, **kwargs)
    return result, time.monotonic() - start_s
