"""A plan's answers are those of single calls; failures end only what depends on them."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from typing import Any

import pytest
from PIL import Image

from service.admission.api_keys import Quota, QuotaLimits
from service.admission.places import RequestContext
from service.analysis import (
    Analysis,
    StepAnswer,
    StepObject,
    analyze,
    crop_around,
    filled,
    step_objects,
    stream_analysis,
    used_names,
)
from service.errors import Overloaded, ServiceError, UnsupportedImage
from service.inference.core import Core
from service.inference.prediction import Answer, TilesSummary
from tasks.results import (
    DetectionsResult,
    Instance,
    InstancesResult,
    Result,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tests.service.inference.test_tiled_answers import COUNTED, TASK, picture
from tests.support.cancellation import cancel_at_each_await
from tests.support.fake_runners import FakeChannel, FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ANSWERS,
    PALIGEMMA_ID,
    PNG,
    context,
    encoded,
    make_core,
    run,
    until,
)
from wire.runner_messages import Failed

TWO = "red circle<loc_100><loc_200><loc_500><loc_600>blue square<loc_0><loc_0><loc_99><loc_99>"
OD = "Locate the objects with category name in the image."
FLORENCE_TEXTS = FLORENCE_ANSWERS | {
    OD: TWO,
    "What does the region <loc_100><loc_200><loc_500><loc_600> describe?": "a circle",
    "What does the region <loc_0><loc_0><loc_99><loc_99> describe?": "a square",
}
PALIGEMMA_TEXTS = PALIGEMMA_ANSWERS | {
    "segment blue square": "<loc0000><loc0000><loc0100><loc0100>" + "<seg000>" * 16 + " blue square"
}
THINGS = {"id": "things", "task": "object_detection"}
WHAT = {"id": "what", "task": "region_description", "each": "things"}
CROP = {"id": "text", "task": "ocr", "each": "things", "view": "crop"}
MASK = {
    "id": "mask",
    "task": "instance_segmentation",
    "each": "things",
    "phrase": "{label}",
    "model": PALIGEMMA_ID,
}


def core(
    florence: FakeDecoder | None = None, paligemma: FakeDecoder | None = None, **options: Any
) -> Core:
    decoders = {
        FLORENCE_ID: florence or FakeDecoder(FLORENCE_TEXTS),
        PALIGEMMA_ID: paligemma or FakeDecoder(PALIGEMMA_TEXTS),
    }
    return make_core(decoders=decoders, **options)


async def answered(
    of: Core, *steps: dict[str, Any], image: bytes = PNG, request: RequestContext | None = None
) -> Analysis:
    return await analyze(of, image, {"steps": list(steps)}, request or context())


def outcomes(analysis: Analysis) -> dict[str, list[tuple[int | None, str, str]]]:
    """Return of each step the object, the model and the text or the error of each answer."""
    answers_of = {}
    for step in analysis.steps:
        answers = [(answer.of, answer.model.id, text_of(answer.outcome)) for answer in step.answers]
        answers_of[step.step.options.id] = answers
    return answers_of


def text_of(outcome: Answer | ServiceError) -> str:
    if isinstance(outcome, ServiceError):
        return outcome.code
    if isinstance(outcome.result, TextResult):
        return outcome.result.text
    return outcome.written.text


def channel_of(of: Core, model_id: str) -> FakeChannel:
    channel = of.clients.runners[model_id].channel
    assert isinstance(channel, FakeChannel)
    return channel


def test_steps_ask_about_boxes() -> None:
    crop = CROP | {"models": [FLORENCE_ID, PALIGEMMA_ID]}
    analysis = run(answered(core(), WHAT, THINGS, crop, MASK))
    assert outcomes(analysis) == {
        "what": [(0, FLORENCE_ID, "a circle"), (1, FLORENCE_ID, "a square")],
        "things": [(None, FLORENCE_ID, TWO)],
        "text": [
            (index, model, "HELLO") for index, model in product((0, 1), (FLORENCE_ID, PALIGEMMA_ID))
        ],
        "mask": [
            (0, PALIGEMMA_ID, PALIGEMMA_TEXTS["segment red circle"]),
            (1, PALIGEMMA_ID, PALIGEMMA_TEXTS["segment blue square"]),
        ],
    }
    assert analysis.image_size_wh == (640, 480)
    assert [answer.view for answer in analysis.steps[2].answers[::2]] == [
        (38, 77, 346, 308),
        (0, 0, 71, 53),
    ]


def test_failure_ends_what_depends_on_it() -> None:
    florence = FakeDecoder(FLORENCE_TEXTS, failure=ZeroDivisionError())
    both = {"id": "all", "task": "captioning", "models": [FLORENCE_ID, PALIGEMMA_ID]}
    analysis = run(answered(core(florence), THINGS, WHAT, both))
    assert outcomes(analysis) == {
        "things": [(None, FLORENCE_ID, "internal")],
        "what": [],
        "all": [(None, FLORENCE_ID, "internal"), (None, PALIGEMMA_ID, "red circle")],
    }


def test_best_objects_are_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_rising_scores(result: Result) -> Iterator[StepObject]:
        for index, item in enumerate(step_objects(result)):
            yield replace(item, score=index / 10)

    monkeypatch.setattr("service.analysis.step_objects", with_rising_scores)
    analysis = run(answered(core(), THINGS, WHAT | {"max_each": 1}))
    assert [answer.of for answer in analysis.steps[1].answers] == [1]
    assert [step.is_truncated for step in analysis.steps] == [False, True]


BOTH = {"task": "captioning", "models": [FLORENCE_ID, PALIGEMMA_ID]}


@pytest.mark.parametrize(
    ("steps", "most", "num_answers"),
    [((THINGS, WHAT), 2, [1, 1]), ((BOTH | {"id": "one"}, BOTH | {"id": "two"}), 3, [2, 0])],
)
def test_number_of_answers_is_limited(
    steps: tuple[Any, ...], most: int, num_answers: list[int]
) -> None:
    analysis = run(analyze(core(), PNG, {"steps": list(steps)}, context(), max_answers=most))
    assert [len(step.answers) for step in analysis.steps] == num_answers
    assert [step.is_truncated for step in analysis.steps] == [False, True]


def test_answers_and_crops_count_for_the_key() -> None:
    limited = Quota("key", QuotaLimits(requests_per_minute=2))
    request = RequestContext("request-1", "test", context().deadline_s, limited)
    analysis = run(answered(core(), THINGS, WHAT | {"model": FLORENCE_ID}, MASK, request=request))
    answers = chain.from_iterable(outcomes(analysis).values())
    assert [text for *_, text in answers].count("overloaded") == 2
    limited = Quota("key", QuotaLimits(megapixels_per_minute=1))
    request = RequestContext("request-1", "test", context().deadline_s, limited)
    image = encoded(Image.new("RGB", (1000, 900)))
    analysis = run(answered(core(), THINGS, CROP, image=image, request=request))
    assert [text for *_, text in outcomes(analysis)["text"]] == ["overloaded", "HELLO"]


def test_region_is_that_of_the_crop() -> None:
    prompt = "What does the region <loc_85><loc_83><loc_916><loc_914> describe?"
    florence = FakeDecoder(FLORENCE_TEXTS | {prompt: "a circle in a crop"})
    analysis = run(answered(core(florence), THINGS, WHAT | {"view": "crop", "max_each": 1}))
    assert outcomes(analysis)["what"] == [(0, FLORENCE_ID, "a circle in a crop")]


def test_several_models() -> None:
    both = {"id": "things", "task": "open_vocabulary_detection", "labels": ["red circle"]}
    steps = (both | {"models": [FLORENCE_ID, PALIGEMMA_ID]}, CROP)
    answers = run(answered(core(), *steps)).steps[1].answers
    assert {answer.of for answer in answers} == {0, 1}
    step = {"id": "a", "task": "captioning", "detail": "paragraph", "models": [PALIGEMMA_ID]}
    analysis = run(answered(core(), step))
    assert outcomes(analysis) == {"a": [(None, PALIGEMMA_ID, "unsupported_task")]}


def test_first_step_decides_the_request() -> None:
    with pytest.raises(UnsupportedImage):
        run(answered(core(), THINGS, WHAT, image=PNG[:-40]))
    with pytest.raises(UnsupportedImage):
        run(answered(core(), THINGS, image=b"none"))
    full = Failed(code="overloaded", message="full")
    with pytest.raises(Overloaded):
        run(answered(core(FakeDecoder(FLORENCE_TEXTS | {OD: full})), THINGS, WHAT))


async def test_closed_stream_ends_sequences() -> None:
    """The generator waits for the next answer, or has one that was not taken."""

    paligemma = FakeDecoder(PALIGEMMA_TEXTS, released=asyncio.Event())
    of = core(paligemma=paligemma)
    request = context()
    caption = {"id": "all", "task": "captioning", "model": PALIGEMMA_ID}
    events = stream_analysis(of, PNG, {"steps": [THINGS, caption]}, request)
    assert isinstance(await anext(events), StepAnswer)
    await until(lambda: paligemma.num_waiting)
    await events.aclose()
    await until(lambda: not paligemma.num_waiting, timeout_s=5)
    assert paligemma.num_cancelled == 1
    await until(lambda: not of.places.num_bytes, timeout_s=5)


async def test_cancelled_request_leaves_nothing() -> None:
    florence = FakeDecoder(FLORENCE_TEXTS)
    of = core(florence, max_pending=1, max_running=4)
    # a thread reads its header
    large = encoded(Image.effect_noise((400, 300), 50).convert("RGB"))

    async def request() -> None:
        steps = (THINGS, WHAT | {"max_each": 1}, CROP | {"max_each": 1})
        await answered(of, *steps, image=large)

    async def all_is_free() -> None:
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)
        assert (of.places.num_bytes, florence.num_waiting) == (0, 0)
        await request()

    assert await cancel_at_each_await(request, all_is_free) >= 4


def test_tiles_of_a_crop() -> None:
    core = make_core()
    things = TASK | {"id": "things"}
    close = COUNTED | {"id": "close", "each": "things", "view": "crop", "margin": 0}
    analysis = run(analyze(core, picture(), {"steps": [things, close]}, context()))
    (answer,) = analysis.steps[1].answers
    assert answer.view == (80, 80, 401, 241)
    assert isinstance(answer.outcome, Answer)
    assert answer.outcome.tiles == TilesSummary(1, 2, asked=1, skipped=1, merged=0)
    assert isinstance(answer.outcome.result, DetectionsResult)
    starts = [detection.box[0] for detection in answer.outcome.result.detections]
    assert starts == pytest.approx([80 + 0.1005 * 321, 240 + 0.1005 * 161])
    channel = core.clients.runners[FLORENCE_ID].channel
    assert isinstance(channel, FakeChannel)
    assert len([call for call in channel.calls if call.pixels is not None]) == 3


WHOLE_WH = (640, 480)
QUAD = ((0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (0.0, 3.0))


@pytest.mark.parametrize(
    ("box", "margin", "crop"),
    [
        ((100.0, 50.0, 140.0, 90.0), 0.0, (100, 50, 140, 90)),
        ((100.2, 50.9, 139.1, 89.5), 0.0, (100, 50, 140, 90)),
        ((100.0, 50.0, 140.0, 90.0), 0.5, (80, 30, 160, 110)),
        ((0.0, 0.0, 640.0, 480.0), 1.0, (0, 0, 640, 480)),
        ((10.0, 10.0, 10.0, 10.0), 0.1, (10, 10, 11, 11)),
        ((640.0, 480.0, 640.0, 480.0), 0.1, (639, 479, 640, 480)),
        ((-9.0, -9.0, -5.0, -5.0), 0.0, (0, 0, 1, 1)),
    ],
)
def test_crop_around_a_box(
    box: tuple[float, float, float, float], margin: float, crop: tuple[int, int, int, int]
) -> None:
    assert crop_around(box, margin, WHOLE_WH) == crop


def test_objects_have_texts() -> None:
    instance = Instance((0.0, 0.0, 1.0, 1.0), "a", 0.5, None, None)
    (item,) = step_objects(InstancesResult((instance,), True))
    assert (item.box, item.texts, item.score) == (instance.box, {"label": "a"}, 0.5)
    (region,) = step_objects(TextRegionsResult((TextRegion(QUAD, "exit", 0.25),), True))
    assert region.box == (0.0, 0.0, 4.0, 3.0)
    assert region.texts == {"text": "exit"}
    assert not (step_objects(TextResult("a", True)))


WORDS = {"id": "words", "task": "ocr_with_regions"}


def of(step: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a step, and one about each of its boxes."""
    return step, {"id": "each", "task": "region_description", "each": step["id"], **fields}


INVALID, UNSUPPORTED = "invalid_request", "unsupported_task"
ONE = {"id": "one", "task": "instance_segmentation", "each": "two"}
ONLY = {"id": "a", "task": "captioning", "model": PALIGEMMA_ID}
LARGE = {"id": "a", "task": "region_description", "region": [0, 0, 641, 9]}


@pytest.mark.parametrize(
    ("steps", "code", "param", "message"),
    [
        (of(THINGS, each="thing"), INVALID, "steps[1].each", "not a step with boxes"),
        (of({"id": "all", "task": "ocr"}), INVALID, "steps[1].each", "not a step with boxes"),
        ((THINGS, THINGS), INVALID, "steps[1].id", "'things' is repeated"),
        (({**THINGS, "id": "a b"},), INVALID, "steps[0].id", "a b"),
        (({"task": "ocr"},), INVALID, "steps[0].id", "id is missing"),
        (({"id": "a", "task": "x"},), INVALID, "steps[0].task", "unknown task 'x'"),
        (({**THINGS, "image": "a"},), INVALID, "steps[0].image", "unknown field"),
        (({**THINGS, "stream": True},), INVALID, "steps[0].stream", "the whole request"),
        (({**THINGS, "view": "crop"},), INVALID, "steps[0].view", "needs each"),
        (({**THINGS, "max_each": 3},), INVALID, "steps[0].max_each", "needs each"),
        (of(THINGS, min_precision=0.9), INVALID, "steps[1].min_precision", "proved about images"),
        (of(THINGS, margin=2), INVALID, "steps[1].margin", "margin is 2"),
        (
            (THINGS, {"id": "a", "task": "instance_segmentation", "phrase": "{label}"}),
            INVALID,
            "steps[1]",
            "needs each",
        ),
        (
            of(THINGS, task="visual_question_answering", question="is it {text}?"),
            INVALID,
            "steps[1]",
            "{text} is not a text of 'things'; its objects fill {label}",
        ),
        (
            of(WORDS, task="visual_question_answering", question="is it {label}?"),
            INVALID,
            "steps[1]",
            "fill {text}",
        ),
        ((3,), INVALID, "steps[0]", "must be an object"),
        ((), INVALID, "steps", "1 to 32 steps, not 0 steps"),
        ((ONE, ONE | {"id": "two", "each": "one"}), INVALID, "steps", ""),
        ((ONE | {"each": "one"},), INVALID, "steps", "one -> one"),
        (({**THINGS, "model": "gpt"},), "unknown_model", "steps[0].model", "gpt"),
        (({**THINGS, "models": ["gpt"]},), "unknown_model", "steps[0].models", "gpt"),
        (({**THINGS, "model": PALIGEMMA_ID},), UNSUPPORTED, "steps[0].model", "does not offer"),
        (({**ONLY, "detail": "paragraph"},), UNSUPPORTED, "steps[0].detail", "not paragraph"),
        ((LARGE,), INVALID, "steps[0].region", "x from 0 to 640"),
    ],
)
def test_wrong_step_is_refused_before_anything_runs(
    steps: tuple[Any, ...], code: str, param: str, message: str
) -> None:
    of = core()
    with pytest.raises(ServiceError) as caught:
        run(answered(of, *steps))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert message in caught.value.message
    assert not channel_of(of, FLORENCE_ID).calls


def test_strings_of_parameters_are_filled() -> None:
    fields = {
        "task": "{label}",
        "labels": ["{label}", "a {label} {other}", 3],
        "question": "{text}?",
        "region": [1, 2],
    }
    assert used_names(fields) == {"label", "text"}
    assert filled(fields, {"label": "{text}", "text": r"\1<loc_1>"}) == {
        "task": "{label}",
        "labels": ["{text}", "a {text} {other}", 3],
        "question": r"\1<loc_1>?",
        "region": [1, 2],
    }
