"""The core over fake runners: one model, a stream, several models, and what is recorded of them."""

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, nullcontext
from dataclasses import replace
from operator import sub
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from PIL import Image
from prometheus_client import REGISTRY

from service.admission.api_keys import Quota, QuotaLimits
from service.admission.places import RequestContext
from service.errors import DeadlineExceeded, Overloaded, ServiceError
from service.images.handle_store import HandleStore, StoreLimits
from service.images.inputs import ImageHandle
from service.inference.core import Comparison, Core
from service.inference.models import ServedModels
from service.inference.prediction import Answer, Stage
from tasks.catalog import TaskOverride
from tasks.results import Detection, DetectionsResult, TextResult
from tasks.scores import Calibration
from tests.support.cancellation import cancel_at_each_await
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.fake_runners import DECODE_S, ENCODE_S, PREFILL_S, FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    OD_PROMPT,
    PALIGEMMA_ID,
    PNG,
    codes,
    compare,
    context,
    florence_fails,
    make_core,
    predict,
    run,
    runner_model,
    until,
)
from tests.support.processes import image_decoders
from wire.runner_channel import CallTimedOut, ChannelError, RunnerUnreachable
from wire.runner_messages import Failed, FailureCode

LABELS: dict[str, Any] = {"task": "open_vocabulary_detection", "labels": ["red circle"]}

# A fake decoder answers two words and four locations, each with exp(-0.5).
SCORE = math.exp(-0.5 * 3)


def test_generation_fields_reach_the_decoder() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(decoders={FLORENCE_ID: decoder})
    predict(core, timeout_s=20, task="ocr", max_new_tokens=7, temperature=0.5, seed=3)
    (spec,) = decoder.specs
    assert (spec.max_new_tokens, spec.temperature, spec.seed) == (7, 0.5, 3)
    assert spec.client == "anonymous"
    assert 19 < spec.timeout_s <= 20


def test_prompts_share_an_encoding() -> None:
    encoder = FakeEncoder()
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(encoders={FLORENCE_ID: encoder}, decoders={FLORENCE_ID: decoder})
    answer = predict(core, task="open_vocabulary_detection", labels=["red circle", "blue square"])
    assert (len(encoder.shapes), len(decoder.specs), len(answer.written.sequences)) == (1, 2, 2)
    assert isinstance(answer.result, DetectionsResult)
    assert [detection.label for detection in answer.result.detections] == ["red circle"]


def test_masks_of_single_names_have_that_name() -> None:
    decoder = FakeDecoder({"segment star": "", "segment red circle": ""})
    core = make_core(
        entries=(FLORENCE, dataclasses.replace(PALIGEMMA, one_name_per_prompt=True)),
        decoders={PALIGEMMA_ID: decoder},
    )
    question: dict[str, Any] = {"task": "instance_segmentation", "model": PALIGEMMA_ID}
    predict(core, **question, phrases=["star", "red circle"])
    grammars = [spec.grammar for spec in decoder.specs]
    for phrase in ("star", "red circle"):
        predict(core, **question, phrase=phrase)
    assert grammars == [spec.grammar for spec in decoder.specs[2:]]
    assert grammars[0] != grammars[1]


def test_own_token_of_a_fine_tune() -> None:
    untuned = dataclasses.replace(FLORENCE, tasks={})
    decoder = FakeDecoder({"<GENERATE_TAGS>": "cat, sofa"})
    core = make_core(entries=(untuned,), decoders={FLORENCE_ID: decoder})
    fields: dict[str, Any] = {"task": "visual_question_answering", "question": "<GENERATE_TAGS>"}
    answer = predict(core, **fields, model=FLORENCE_ID)
    assert answer.result == TextResult("cat, sofa", True)
    (spec,) = decoder.specs
    assert (spec.segments, spec.own_token) == ([("<GENERATE_TAGS>", True)], "<GENERATE_TAGS>")
    assert spec.grammar is None


def test_default_model() -> None:
    answer = predict(make_core(), task="visual_question_answering", question="what is it?")
    assert (answer.model.id, answer.result) == (FLORENCE_ID, TextResult("a circle", True))
    without_questions = dataclasses.replace(
        FLORENCE, tasks={"visual_question_answering": TaskOverride(None)}
    )
    core = make_core(entries=(without_questions, PALIGEMMA))
    answer = predict(core, task="visual_question_answering", question="what is it?")
    assert (answer.model.id, answer.result) == (PALIGEMMA_ID, TextResult("circle", True))


def detections(core: Core, **fields: Any) -> tuple[Detection, ...]:
    result = predict(core, **{"task": "object_detection"} | fields).result
    assert isinstance(result, DetectionsResult)
    return result.detections


def test_overlapping_objects() -> None:
    twice = FLORENCE_ANSWERS[OD_PROMPT] * 2
    core = make_core(decoders={FLORENCE_ID: FakeDecoder({OD_PROMPT: twice})})
    assert len(detections(core)) == 2
    assert len(detections(core, nms_iou=0.5)) == 1


def test_calibrated_scores() -> None:
    core = make_core()
    model = runner_model(core.models)
    calibration = Calibration(
        model.id, model.checkpoint, "object_detection", (0.0, 1.0), (0.0, 0.5)
    )
    model = dataclasses.replace(model, calibrations={("object_detection", False): calibration})
    core.models = ServedModels({model.id: model})
    answer, sampled = (
        predict(core, task="object_detection", temperature=value, seed=1) for value in (0.0, 1.0)
    )
    (detection,) = cast("DetectionsResult", answer.result).detections
    assert (answer.is_calibrated, sampled.is_calibrated) == (True, False)
    assert detection.score == round(SCORE / 2, 4)
    assert not predict(core, **LABELS).is_calibrated


def test_scores_are_compared_before_they_are_rounded() -> None:
    core = make_core()
    rounded = round(SCORE, 4)
    between = (rounded + SCORE) / 2
    assert rounded < between < SCORE
    for min_score, expected in ((between, [rounded]), (SCORE + 1e-6, [])):
        answer = predict(core, task="object_detection", min_score=min_score)
        found = cast("DetectionsResult", answer.result).detections
        assert [detection.score for detection in found] == expected


@pytest.mark.parametrize(
    ("fields", "florence", "paligemma"),
    [
        ({"task": "ocr"}, "ok", "ok"),
        ({"task": "ocr", "models": [PALIGEMMA_ID, FLORENCE_ID, PALIGEMMA_ID]}, "ok", "ok"),
        ({"task": "object_detection"}, "ok", None),
        (
            {"task": "object_detection", "models": [FLORENCE_ID, PALIGEMMA_ID]},
            "ok",
            "unsupported_task",
        ),
        ({"task": "captioning", "detail": "paragraph"}, "ok", "unsupported_task"),
    ],
)
def test_models_of_a_comparison(
    fields: dict[str, Any], florence: str | None, paligemma: str | None
) -> None:
    texts = FLORENCE_ANSWERS | {"Describe with a paragraph what is shown in the image.": "a"}
    comparison = compare(make_core(decoders={FLORENCE_ID: FakeDecoder(texts)}), **fields)
    expected = [(FLORENCE_ID, florence), (PALIGEMMA_ID, paligemma)]
    assert list(codes(comparison).items()) == [pair for pair in expected if pair[1] is not None]
    assert comparison.image_size_wh == IMAGE_SIZE_WH


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RunnerUnreachable("refused"), "not_ready"),
        (CallTimedOut("late"), "deadline_exceeded"),
        (ChannelError("status 500"), "internal"),
        (RuntimeError("a defect"), "internal"),
    ],
)
def test_failed_model_of_a_comparison(failure: Exception, code: str) -> None:
    comparison = compare(florence_fails(failure), task="ocr")
    assert codes(comparison) == {FLORENCE_ID: code, PALIGEMMA_ID: "ok"}
    error = comparison.answers[0][1]
    assert isinstance(error, ServiceError)
    assert FLORENCE_ID in error.message
    assert "defect" not in error.message


def test_comparison_is_concurrent() -> None:
    """Each encoder waits until the other is called."""

    async def both() -> Comparison:
        released = asyncio.Event()
        waiting = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: waiting, PALIGEMMA_ID: waiting})
        task = asyncio.create_task(core.compare(PNG, {"task": "ocr"}, context()))
        while len(waiting.shapes) < 2:
            await asyncio.sleep(0.001)
        released.set()
        return await task

    assert codes(run(asyncio.wait_for(both(), 60))) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "ok"}


def test_comparison_refused_by_all() -> None:
    async def compare_twice() -> Comparison:
        encoders = {
            model_id: FakeEncoder(released=asyncio.Event())
            for model_id in (FLORENCE_ID, PALIGEMMA_ID)
        }
        core = make_core(encoders=encoders, max_running=1, max_waiting_tokens=1)
        first = asyncio.create_task(core.compare(PNG, {"task": "ocr"}, context()))
        await until(lambda: all(encoder.shapes for encoder in encoders.values()))
        try:
            return await core.compare(PNG, {"task": "ocr"}, context())
        finally:
            first.cancel()

    def counts() -> list[float]:
        labels = {"api": "test", "task": "ocr", "status": "overloaded"}
        name = "diptych_requests_total"
        models = (FLORENCE_ID, PALIGEMMA_ID)
        return [REGISTRY.get_sample_value(name, labels | {"model": id}) or 0 for id in models]

    before = counts()
    with pytest.raises(Overloaded, match="tokens queued for florence-2-mini"):
        run(asyncio.wait_for(compare_twice(), 60))
    # an interface records the error that is raised
    assert counts() == [before[0], before[1] + 1]


@pytest.mark.parametrize(
    ("code", "message", "error", "param"),
    [
        (
            "sequence_too_long",
            "max_new_tokens is 9; after this prompt up to 5 fit",
            "invalid_request",
            "max_new_tokens",
        ),
        ("sequence_too_long", "the prompt is too long", "invalid_request", None),
        ("deadline_exceeded", "the time ran out", "deadline_exceeded", None),
        ("overloaded", "too many wait", "overloaded", None),
        ("unknown_adapter", "no adapter of the build", "not_ready", None),
        ("unknown_token", "<VQA> is not a token", "invalid_request", "messages"),
        ("non_finite_logits", "not finite", "internal", None),
        ("internal", "failed", "internal", None),
    ],
)
def test_failed_sequences_are_errors(
    code: FailureCode, message: str, error: str, param: str | None
) -> None:
    decoder = FakeDecoder({**FLORENCE_ANSWERS, OD_PROMPT: Failed(code=code, message=message)})
    with pytest.raises(ServiceError, match=message) as caught:
        predict(make_core(decoders={FLORENCE_ID: decoder}), task="object_detection")
    assert (caught.value.code, caught.value.param) == (error, param)


@pytest.mark.parametrize(
    ("timeout_s", "late"),
    [
        (-1, "the header of the image was not read"),
        (0, "the header of the image was not read"),
        (1, "florence-2-mini did not answer"),
    ],
)
def test_deadline_ends_a_request(timeout_s: float, late: str) -> None:
    async def never_answers() -> Answer:
        core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
        return await core.predict(PNG, {"task": "ocr"}, context(timeout_s=timeout_s))

    with pytest.raises(DeadlineExceeded, match=f"{late} before the deadline"):
        run(asyncio.wait_for(never_answers(), 60))


ADAPTERS = tuple(
    replace(FLORENCE, id=f"tuned-{index}", adapter_of=FLORENCE_ID) for index in range(3)
)
ENTRIES = (FLORENCE, *ADAPTERS, PALIGEMMA)


async def test_adapters_share_a_queue() -> None:
    """With a queue each, four requests would be at the runner at the same time."""

    async def ask(core: Core, model_id: str) -> str:
        return (await core.predict(PNG, {"task": "ocr", "model": model_id}, context())).model.id

    decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
    core = make_core(decoders={FLORENCE_ID: decoder}, entries=ENTRIES, max_running=2)
    ids = [FLORENCE_ID, *(adapter.id for adapter in ADAPTERS)]
    asking = [asyncio.create_task(ask(core, model_id)) for model_id in ids]
    await until(lambda: len(decoder.specs) == 2)
    assert await ask(core, PALIGEMMA_ID) == PALIGEMMA_ID  # has its own queue
    assert len(decoder.specs) == 2
    assert decoder.released is not None
    decoder.released.set()
    assert await asyncio.gather(*asking) == ids


FIELDS = {"task": "object_detection"}


Call = Callable[[Core, RequestContext], Coroutine[Any, Any, object]]


async def call_predict(core: Core, context: RequestContext) -> object:
    return await core.predict(PNG, FIELDS, context)


async def call_compare(core: Core, context: RequestContext) -> object:
    return await core.compare(PNG, {"task": "captioning"}, context)


async def call_stream(core: Core, context: RequestContext) -> None:
    core.places.take(context)  # before the body is read, as every interface does
    async with aclosing(
        cast(AsyncGenerator[object, None], core.stream(PNG, FIELDS, context))
    ) as pieces:
        async for _ in pieces:
            pass


@pytest.mark.parametrize("call", [call_predict, call_compare, call_stream])
async def test_gone_client_frees_all_limits(call: Call) -> None:
    quota = Quota("key", QuotaLimits(max_concurrent=1))
    core = make_core(max_pending=1, max_running=1)

    async def request() -> None:
        await call(core, RequestContext("request-1", "test", math.inf, quota))

    async def all_is_free() -> None:
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)
            await request()

    assert await cancel_at_each_await(request, all_is_free) >= 1


async def test_unbegun_stream_leaves_its_place() -> None:
    core = make_core()
    request = context()
    core.places.take(request)
    step = core.stream(PNG, FIELDS, request).__anext__()
    step.send(None)  # its task has not run yet
    with pytest.raises(asyncio.CancelledError):
        step.throw(asyncio.CancelledError())
    assert not request.place.is_taken


async def test_images_wait_for_slots_of_their_client() -> None:
    core = make_core(max_pending=3)
    calls = [context() for _ in range(3)]
    for call in calls:
        core.places.take(call)  # a slot needs no further one
    async with core.answer_slot(calls[0]) as first, core.answer_slot(calls[1]):
        third = asyncio.create_task(core.answer_slot(calls[2]).__aenter__())
        await asyncio.sleep(0)
        assert not third.done()
        other = replace(calls[2], quota=Quota("other", QuotaLimits()))
        async with core.answer_slot(other), asyncio.timeout(10):
            assert (await core.predict(PNG, {"task": "ocr"}, first)).model.id == FLORENCE_ID
        assert not first.place.is_taken
    await third


STAGES = [stage for stage in get_args(Stage) if stage != "total"]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"diptych_{name}", labels) or 0.0


def test_answer_is_counted() -> None:
    labels = {"model": FLORENCE_ID, "task": "object_detection"}
    names = [
        ("requests_total", {"api": "test", "status": "ok"}),
        ("generated_tokens_total", {}),
        ("constrained_tokens_total", {}),
        ("request_seconds_count", {}),
        ("time_to_first_token_seconds_count", {}),
        ("time_per_output_token_seconds_count", {}),
        ("unparsed_outputs_total", {}),
        *(("stage_seconds_count", {"stage": stage}) for stage in STAGES),
    ]
    before = [metric(name, **labels, **more) for name, more in names]
    sums = [f"time_{name}_seconds_sum" for name in ("to_first_token", "per_output_token")]
    sums_before = [metric(name, **labels) for name in sums]
    start_s = time.monotonic()
    predict(make_core(), task="object_detection")
    took_s = time.monotonic() - start_s
    after = [metric(name, **labels, **more) for name, more in names]
    # two words, four locations and the end token
    assert list(map(sub, after, before)) == [1, 7, 1, 1, 1, 1, 0, *[1] * 7]
    to_first_token_s, per_output_token_s = (
        metric(n, **labels) - old for n, old in zip(sums, sums_before, strict=True)
    )
    assert per_output_token_s == pytest.approx(DECODE_S / 6)
    assert ENCODE_S + PREFILL_S < to_first_token_s < ENCODE_S + PREFILL_S + took_s


def test_unparsed_text_is_counted() -> None:
    labels = {"model": FLORENCE_ID, "task": "object_detection"}
    before = metric("unparsed_outputs_total", **labels)
    core = make_core(decoders={FLORENCE_ID: FakeDecoder({OD_PROMPT: "nothing of the kind"})})
    answer = predict(core, task="object_detection")
    assert answer.result == DetectionsResult((), is_parsed=False)
    assert answer.written.sequences[0].text == "nothing of the kind"
    assert metric("unparsed_outputs_total", **labels) - before == 1


async def test_retained_image_ends_with_its_request() -> None:
    async with make_core().opened(PNG, context()) as image:
        image.hold = lambda _num_bytes: None
        image.header = replace(image.header, is_heavy=True)
        await image.resized((4, 4), Image.Resampling.BOX)
        assert image_decoders()
    await until(lambda: not image_decoders() and len(asyncio.all_tasks()) == 1)


async def test_stored_image_takes_memory(tmp_path: Path) -> None:
    images = HandleStore(tmp_path, StoreLimits(10_000, 9, 100))
    handle = ImageHandle(images.add(context().quota.owner, PNG, IMAGE_SIZE_WH).id)
    for max_bytes, outcome in (
        (len(PNG), nullcontext()),
        (len(PNG) - 1, pytest.raises(Overloaded)),
    ):
        core = make_core(handles=images, max_bytes=max_bytes)
        with outcome:
            await core.predict(handle, {"task": "ocr"}, context())
        assert core.places.num_bytes == 0


def test_defect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServiceError, match=f"^{FLORENCE_ID} failed; "):
        predict(florence_fails(RuntimeError("a defect")), task="ocr")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"request request-1: {FLORENCE_ID} failed"
    assert "RuntimeError: a defect" in caplog.text
