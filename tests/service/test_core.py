import asyncio
import logging
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
import numpy as np
import pytest
from bentoml.exceptions import BentoMLException, ServiceUnavailable
from prometheus_client import REGISTRY

from runners.messages import Failed, FailureCode
from service.core import Comparison, Core
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
    UnknownModel,
    UnsupportedImage,
    UnsupportedTask,
)
from service.prediction import Answer
from service.runner_client import RunnerClient
from tasks.results import BoxXyxy, DetectionsResult, InstancesResult, TextResult
from tests.support.fake_runners import DECODE_S, ENCODE_S, NUM_PROMPT_TOKENS, PREFILL_S, FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    INPUT_SIZE_WH,
    PALIGEMMA_ANSWERS,
    PALIGEMMA_ID,
    PNG,
    context,
    make_core,
)

T = TypeVar("T")
STAGES = ("preprocess", "encode_queue", "encode", "decode_queue", "prefill", "decode", "postprocess")
OD_PROMPT = "Locate the objects with category name in the image."
LABELS: dict[str, Any] = {"task": "open_vocabulary_detection", "labels": ["red circle"]}


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def predict(core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any) -> Answer:
    return run(core.predict(image, fields, context(timeout_s=timeout_s)))


def compare(core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any) -> Comparison:
    return run(core.compare(image, fields, context(timeout_s=timeout_s)))


def codes(comparison: Comparison) -> dict[str, str]:
    """Return by model the code of its error, or ok."""
    return {
        model.id: outcome.code if isinstance(outcome, ServiceError) else "ok" for model, outcome in comparison.answers
    }


def florence_fails(failure: Exception) -> Core:
    return make_core(decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, failure=failure)})


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"diptych_{name}", labels) or 0.0


# Answers


def test_answer_is_in_pixels_of_the_image_that_was_sent() -> None:
    answer = predict(make_core(), task="object_detection")
    assert isinstance(answer.result, DetectionsResult)
    (detection,) = answer.result.detections
    assert detection.label == "red circle"
    assert detection.box == pytest.approx((64.32, 96.24, 320.32, 288.24))  # bins 100, 200, 500, 600 of 640 x 480
    assert detection.score == pytest.approx(math.exp(-0.5))
    assert answer.image_size_wh == IMAGE_SIZE_WH


def test_both_families_answer_in_one_geometry() -> None:
    boxes: list[BoxXyxy] = []
    for _, answer in compare(make_core(), **LABELS).answers:
        assert isinstance(answer, Answer)
        assert isinstance(answer.result, DetectionsResult)
        boxes.extend(detection.box for detection in answer.result.detections)
    assert boxes == [
        pytest.approx((64.32, 96.24, 320.32, 288.24)),
        pytest.approx((62.56, 93.84, 312.81, 281.52), abs=0.01),  # 100, 200, 500, 600 of 1023
    ]


@pytest.mark.parametrize("model", [FLORENCE_ID, PALIGEMMA_ID])
def test_mask_format_decides_between_polygons_and_mask(model: str) -> None:
    for mask_format, has_mask in (("polygon", False), ("rle", True)):
        fields = {"task": "instance_segmentation", "phrase": "red circle", "mask_format": mask_format, "model": model}
        result = run(make_core().predict(PNG, fields, context())).result
        assert isinstance(result, InstancesResult)
        (instance,) = result.instances
        assert (instance.mask is not None, instance.polygons is None) == (has_mask, has_mask)
        assert instance.mask is None or instance.mask.size_hw == IMAGE_SIZE_WH[::-1]


def test_image_is_resized_to_the_input_of_the_model() -> None:
    encoder = FakeEncoder()
    predict(make_core(encoders={FLORENCE_ID: encoder}), task="ocr")
    assert encoder.shapes == [(INPUT_SIZE_WH[1], INPUT_SIZE_WH[0], 3)]


def test_generation_fields_reach_the_decoder() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(decoders={FLORENCE_ID: decoder})
    predict(core, timeout_s=20, task="ocr", max_new_tokens=7, temperature=0.5, seed=3)
    (spec,) = decoder.specs
    assert (spec.max_new_tokens, spec.temperature, spec.seed) == (7, 0.5, 3)
    assert 19 < spec.timeout_s <= 20


def test_task_of_several_prompts_encodes_the_image_once() -> None:
    encoder, decoder = FakeEncoder(), FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(encoders={FLORENCE_ID: encoder}, decoders={FLORENCE_ID: decoder})
    answer = predict(core, task="open_vocabulary_detection", labels=["red circle", "blue square"])
    assert (len(encoder.shapes), len(decoder.specs), len(answer.sequences)) == (1, 2, 2)
    assert isinstance(answer.result, DetectionsResult)
    assert [detection.label for detection in answer.result.detections] == ["red circle"]


def test_text_of_a_user_is_never_a_control_segment() -> None:
    decoder = FakeDecoder({"Locate <loc_5> in the image with mask": ""})
    predict(make_core(decoders={FLORENCE_ID: decoder}), task="instance_segmentation", phrase="<loc_5>")
    assert [is_control for _, is_control in decoder.specs[0].segments] == [False]


def test_times_are_those_of_the_stages() -> None:
    times = predict(make_core(), task="ocr").times
    assert (times.encode_s, times.prefill_s, times.decode_s) == (ENCODE_S, PREFILL_S, DECODE_S)
    assert min(times.preprocess_s, times.postprocess_s, times.total_s) > 0
    assert (times.encode_queue_s, times.decode_queue_s) == (0, 0)  # what the fakes say is longer than the call


# Which model


def test_default_model_is_the_first_that_offers_the_task() -> None:
    assert predict(make_core(), task="ocr").model.id == FLORENCE_ID
    answer = predict(make_core(), task="visual_question_answering", question="what is it?")
    assert (answer.model.id, answer.result) == (PALIGEMMA_ID, TextResult("circle", True))


def test_named_model_answers() -> None:
    assert predict(make_core(), task="ocr", model=PALIGEMMA_ID).model.id == PALIGEMMA_ID


def test_unknown_model_is_named() -> None:
    with pytest.raises(UnknownModel, match="'florence-3'"):
        predict(make_core(), task="ocr", model="florence-3")
    with pytest.raises(UnknownModel, match="'florence-3'") as caught:
        compare(make_core(), task="ocr", models=[FLORENCE_ID, "florence-3"])
    assert caught.value.param == "models"


def test_empty_model_is_no_model() -> None:
    with pytest.raises(ServiceError) as caught:
        predict(make_core(), task="ocr", model="")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"task": "object_detection", "model": PALIGEMMA_ID}, UnsupportedTask, "task"),
        ({"task": "captioning", "detail": "paragraph", "model": PALIGEMMA_ID}, UnsupportedTask, "detail"),
        ({"task": "captioning", "language": "fr"}, UnsupportedTask, "language"),
        ({"task": "region_description", "region": [0, 0, 641, 480]}, InvalidRequest, "region"),
    ],
)
def test_what_a_model_does_not_do_is_an_error_with_the_field(
    fields: dict[str, Any], error: type[ServiceError], param: str
) -> None:
    encoder = FakeEncoder()
    with pytest.raises(error) as caught:
        predict(make_core(encoders={FLORENCE_ID: encoder, PALIGEMMA_ID: encoder}), **fields)
    assert caught.value.param == param
    assert encoder.shapes == []  # found before any work


def test_region_is_checked_against_the_upright_image() -> None:
    decoder = FakeDecoder({"What does the region <loc_0><loc_0><loc_999><loc_999> describe?": "all"})
    core = make_core(decoders={FLORENCE_ID: decoder})
    assert predict(core, task="region_description", region=[0, 0, 640, 480]).result == TextResult("all", True)


# Comparisons


def test_comparison_is_in_the_order_of_the_catalog() -> None:
    for models in (None, [PALIGEMMA_ID, FLORENCE_ID], [PALIGEMMA_ID, FLORENCE_ID, PALIGEMMA_ID]):
        comparison = compare(make_core(), task="ocr", models=models)
        assert list(codes(comparison)) == [FLORENCE_ID, PALIGEMMA_ID]
        assert comparison.image_size_wh == IMAGE_SIZE_WH


def test_comparison_without_models_asks_those_that_offer_the_task() -> None:
    assert codes(compare(make_core(), task="object_detection")) == {FLORENCE_ID: "ok"}


def test_named_model_that_does_not_offer_the_task_gets_its_own_error() -> None:
    comparison = compare(make_core(), task="object_detection", models=[FLORENCE_ID, PALIGEMMA_ID])
    assert codes(comparison) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "unsupported_task"}


def test_model_that_does_not_do_the_variant_gets_its_own_error() -> None:
    comparison = compare(
        make_core(decoders={FLORENCE_ID: FakeDecoder({"Describe with a paragraph what is shown in the image.": "a"})}),
        task="captioning",
        detail="paragraph",
    )
    assert codes(comparison) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "unsupported_task"}


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (aiohttp.ClientConnectionError("refused"), "not_ready"),
        (TimeoutError("late"), "deadline_exceeded"),
        (ServiceUnavailable("busy"), "overloaded"),
        (BentoMLException("no"), "internal"),
        (RuntimeError("a defect"), "internal"),
    ],
)
def test_failing_model_does_not_take_the_others_answers(failure: Exception, code: str) -> None:
    assert codes(compare(florence_fails(failure), task="ocr")) == {FLORENCE_ID: code, PALIGEMMA_ID: "ok"}


def test_models_of_a_comparison_run_at_the_same_time() -> None:
    """Each encoder waits for the other to be asked."""

    async def both() -> Comparison:
        released = asyncio.Event()
        waiting = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: waiting, PALIGEMMA_ID: waiting})
        task = asyncio.create_task(core.compare(PNG, {"task": "ocr"}, context()))
        while len(waiting.shapes) < 2:
            await asyncio.sleep(0.001)
        released.set()
        return await task

    assert codes(run(asyncio.wait_for(both(), 10))) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "ok"}


# Failures


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (aiohttp.ClientConnectionError("refused"), NotReady),
        (aiohttp.ServerDisconnectedError("gone"), NotReady),
        (TimeoutError("late"), DeadlineExceeded),
        (ServiceUnavailable("busy"), Overloaded),
        (BentoMLException("Traceback (most recent call last)"), InternalError),
        (RuntimeError("secret detail"), InternalError),
    ],
)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_failure_of_a_runner_is_an_error_of_the_service(
    failure: Exception, error: type[ServiceError], part: str
) -> None:
    encoder = FakeEncoder(failure=failure if part == "encoder" else None)
    decoder = FakeDecoder(FLORENCE_ANSWERS, failure=failure if part == "decoder" else None)
    with pytest.raises(error) as caught:
        predict(make_core({FLORENCE_ID: encoder}, {FLORENCE_ID: decoder}), task="ocr")
    assert FLORENCE_ID in caught.value.message
    assert str(failure) not in caught.value.message


@pytest.mark.parametrize(
    ("code", "message", "error", "param"),
    [
        ("sequence_too_long", "max_new_tokens is 9; after this prompt up to 5 fit", InvalidRequest, "max_new_tokens"),
        ("sequence_too_long", "the prompt is too long", InvalidRequest, None),
        ("deadline_exceeded", "the time ran out", DeadlineExceeded, None),
        ("overloaded", "too many wait", Overloaded, None),
        ("non_finite_logits", "not finite", InternalError, None),
        ("internal", "failed", InternalError, None),
    ],
)
def test_failed_sequence_is_an_error_of_the_service(
    code: FailureCode, message: str, error: type[ServiceError], param: str | None
) -> None:
    decoder = FakeDecoder({**FLORENCE_ANSWERS, OD_PROMPT: Failed(code=code, message=message)})
    with pytest.raises(error, match=message) as caught:
        predict(make_core(decoders={FLORENCE_ID: decoder}), task="object_detection")
    assert caught.value.param == param


def test_image_that_cannot_be_read_ends_a_comparison() -> None:
    with pytest.raises(UnsupportedImage):
        compare(make_core(), b"no image", task="ocr")


def test_image_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(ImageTooLarge):
        predict(make_core(max_image_pixels=IMAGE_SIZE_WH[0] * IMAGE_SIZE_WH[1] - 1), task="ocr")


@pytest.mark.parametrize("timeout_s", [-1, 0, 0.05])
def test_request_whose_time_runs_out_ends(timeout_s: float) -> None:
    async def never_answers() -> Answer:
        core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
        return await core.predict(PNG, {"task": "ocr"}, context(timeout_s=timeout_s))

    with pytest.raises(DeadlineExceeded, match="florence-2-mini did not answer in the time"):
        run(asyncio.wait_for(never_answers(), 5))


def test_slow_model_does_not_take_the_others_answers() -> None:
    async def one_never_answers() -> Comparison:
        core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
        return await core.compare(PNG, {"task": "ocr"}, context(timeout_s=0.5))

    assert codes(run(one_never_answers())) == {FLORENCE_ID: "deadline_exceeded", PALIGEMMA_ID: "ok"}


def test_request_above_the_most_at_work_is_refused_and_the_place_comes_free_again() -> None:
    async def three_requests() -> str:
        released = asyncio.Event()
        encoder = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: encoder}, max_pending=1)
        first = asyncio.create_task(core.predict(PNG, {"task": "ocr"}, context()))
        while not encoder.shapes:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded, match="1 requests are at work, the most that are allowed"):
            await core.predict(PNG, {"task": "ocr"}, context())
        with pytest.raises(Overloaded):
            await core.compare(PNG, {"task": "ocr"}, context())
        released.set()
        await first
        return (await core.predict(PNG, {"task": "ocr"}, context())).model.id

    assert run(asyncio.wait_for(three_requests(), 10)) == FLORENCE_ID


@pytest.mark.parametrize("image", [PNG, b"no image"])
def test_failed_and_cancelled_requests_give_their_place_back(image: bytes) -> None:
    async def fail_then_answer() -> str:
        released = asyncio.Event()
        encoder = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: encoder}, max_pending=1)
        task = asyncio.create_task(core.predict(image, {"task": "ocr"}, context()))
        while not encoder.shapes and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), UnsupportedImage)
        released.set()
        return (await core.predict(PNG, {"task": "ocr"}, context())).model.id

    assert run(asyncio.wait_for(fail_then_answer(), 10)) == FLORENCE_ID


# Readiness


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        (FakeEncoder(), FakeDecoder({}), True),
        (FakeEncoder(is_up=False), FakeDecoder({}), False),
        (FakeEncoder(), FakeDecoder({}, is_up=False), False),
        (FakeEncoder(failure=aiohttp.ClientConnectionError("refused")), FakeDecoder({}), False),
        (FakeEncoder(), FakeDecoder({}, failure=TimeoutError("late")), False),
    ],
)
def test_model_is_ready_when_both_runners_answer(encoder: FakeEncoder, decoder: FakeDecoder, expected: bool) -> None:
    assert run(RunnerClient("a", encoder, decoder).is_ready()) is expected


# Metrics and log


def test_answer_is_counted_by_model_and_task() -> None:
    labels = {"model": FLORENCE_ID, "task": "object_detection"}
    names = [
        ("requests_total", {"api": "test", "status": "ok"}),
        ("generated_tokens_total", {}),
        ("request_seconds_count", {}),
        ("time_to_first_token_seconds_count", {}),
        ("time_per_output_token_seconds_count", {}),
        ("unparsed_outputs_total", {}),
        *(("stage_seconds_count", {"stage": stage}) for stage in STAGES),
    ]
    before = [metric(name, **labels, **more) for name, more in names]
    sums = [f"time_{name}_seconds_sum" for name in ("to_first_token", "per_output_token")]
    sums_before = [metric(name, **labels) for name in sums]
    predict(make_core(), task="object_detection")
    increases = [metric(name, **labels, **more) - old for (name, more), old in zip(names, before, strict=True)]
    assert increases == [1, 7, 1, 1, 1, 0, *[1] * 7]  # two words, four locations and the end token
    to_first_token_s, per_output_token_s = (metric(n, **labels) - old for n, old in zip(sums, sums_before, strict=True))
    assert per_output_token_s == pytest.approx(DECODE_S / 6)
    assert ENCODE_S + PREFILL_S < to_first_token_s < ENCODE_S + PREFILL_S + 0.2


def test_every_model_of_a_comparison_is_counted_with_its_own_status() -> None:
    def counts() -> list[float]:
        return [
            metric("requests_total", api="test", model=model, task="ocr", status=status)
            for model, status in ((FLORENCE_ID, "ok"), (FLORENCE_ID, "not_ready"), (PALIGEMMA_ID, "ok"))
        ]

    before = counts()
    compare(florence_fails(aiohttp.ClientConnectionError("refused")), task="ocr")
    assert (np.array(counts()) - before).tolist() == [0, 1, 1]


def test_text_that_cannot_be_read_is_a_result_and_is_counted() -> None:
    labels = {"model": FLORENCE_ID, "task": "object_detection"}
    before = metric("unparsed_outputs_total", **labels)
    core = make_core(decoders={FLORENCE_ID: FakeDecoder({OD_PROMPT: "nothing of the kind"})})
    answer = predict(core, task="object_detection")
    assert answer.result == DetectionsResult((), is_parsed=False)
    assert answer.sequences[0].text == "nothing of the kind"
    assert metric("unparsed_outputs_total", **labels) - before == 1


def test_queue_depth_is_zero_again_after_failures() -> None:
    for failure in (None, aiohttp.ClientConnectionError("refused"), RuntimeError("a")):
        compare(make_core(encoders={FLORENCE_ID: FakeEncoder(failure=failure)}), task="ocr")
        assert metric("queue_depth", model=FLORENCE_ID, stage="encode") == 0


def test_log_has_one_line_a_model_with_id_model_task_and_sizes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "service"):
        compare(florence_fails(aiohttp.ClientConnectionError("refused")), task="ocr")
    lines = sorted(record.getMessage() for record in caplog.records if record.name == "service.recording")
    assert lines[0] == f"request request-1 not_ready api=test model={FLORENCE_ID} task=ocr"
    ok = f"request request-1 ok api=test model={PALIGEMMA_ID} task=ocr image=640x480 tokens=2 total_ms="
    assert lines[1].startswith(ok)
    assert len(lines) == 2


def test_log_has_no_image_no_prompt_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    secret = "purple-elephant"
    answers = {f"detect {secret}": f"<loc0200><loc0100><loc0600><loc0500> {secret}", **PALIGEMMA_ANSWERS}
    decoders = {
        PALIGEMMA_ID: FakeDecoder(answers),
        FLORENCE_ID: FakeDecoder({f"Locate {secret} in the image.": Failed(code="internal", message="failed")}),
    }
    fields = {"task": "open_vocabulary_detection", "labels": [secret]}
    with caplog.at_level(logging.DEBUG):
        comparison = run(make_core(decoders=decoders).compare(PNG, fields, context()))
        with pytest.raises(InvalidRequest):
            run(make_core().predict(PNG, {**fields, "unknown": secret}, context()))
    assert codes(comparison) == {FLORENCE_ID: "internal", PALIGEMMA_ID: "ok"}
    assert caplog.records
    assert secret not in caplog.text
    assert "PNG" not in caplog.text


def test_defect_is_logged_with_the_id_of_the_request_and_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InternalError):
        predict(florence_fails(RuntimeError("a defect")), task="ocr")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage() == f"request request-1: {FLORENCE_ID} failed at ocr"
    assert "RuntimeError: a defect" in caplog.text


def test_prompt_tokens_are_those_of_the_decoder() -> None:
    assert predict(make_core(), task="ocr").sequences[0].num_prompt_tokens == NUM_PROMPT_TOKENS
