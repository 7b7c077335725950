import asyncio
import dataclasses
import math
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from service.errors import InvalidRequest, ServiceError, UnknownModel, UnsupportedTask
from service.inference.core import Core
from service.inference.prediction import Answer
from service.inference.served_models import ServedModels
from tasks.catalog import TaskOverride
from tasks.results import BoxXyxy, Detection, DetectionsResult, InstancesResult, TextResult
from tasks.scores import Calibration
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.core_calls import OD_PROMPT, compare, predict, run, until
from tests.support.fake_runners import (
    DECODE_S,
    ENCODE_S,
    NUM_PROMPT_TOKENS,
    PREFILL_S,
    FakeDecoder,
    FakeEncoder,
)
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    INPUT_SIZE_WH,
    PALIGEMMA_ID,
    PNG,
    context,
    make_core,
)

LABELS: dict[str, Any] = {"task": "open_vocabulary_detection", "labels": ["red circle"]}

# A fake decoder answers two words and four locations, each with exp(-0.5).
SCORE = math.exp(-0.5 * 3)


def test_answer_is_in_pixels_of_the_original_image() -> None:
    answer = predict(make_core(), task="object_detection")
    assert isinstance(answer.result, DetectionsResult)
    (detection,) = answer.result.detections
    assert detection.label == "red circle"
    # bins 100, 200, 500, 600 of 640 x 480
    assert detection.box == pytest.approx((64.32, 96.24, 320.32, 288.24))
    assert detection.score == pytest.approx(SCORE)
    assert not answer.is_calibrated
    assert answer.image_size_wh == IMAGE_SIZE_WH


def test_both_families_answer_in_the_same_frame() -> None:
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
def test_mask_format_selects_polygons_or_masks(model: str) -> None:
    for mask_format, has_mask in (("polygon", False), ("rle", True)):
        fields = {
            "task": "instance_segmentation",
            "phrase": "red circle",
            "mask_format": mask_format,
            "model": model,
        }
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
    encoder = FakeEncoder()
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    core = make_core(encoders={FLORENCE_ID: encoder}, decoders={FLORENCE_ID: decoder})
    answer = predict(core, task="open_vocabulary_detection", labels=["red circle", "blue square"])
    assert (len(encoder.shapes), len(decoder.specs), len(answer.written.sequences)) == (1, 2, 2)
    assert isinstance(answer.result, DetectionsResult)
    assert [detection.label for detection in answer.result.detections] == ["red circle"]


def test_user_text_is_never_a_control_segment() -> None:
    decoder = FakeDecoder({"Locate <loc_5> in the image with mask": ""})
    predict(
        make_core(decoders={FLORENCE_ID: decoder}), task="instance_segmentation", phrase="<loc_5>"
    )
    assert [is_control for _, is_control in decoder.specs[0].segments] == [False]


def test_times_are_reported_by_stage() -> None:
    times = predict(make_core(), task="ocr").times
    assert (times.encode_s, times.prefill_s, times.decode_s) == (ENCODE_S, PREFILL_S, DECODE_S)
    assert min(times.preprocess_s, times.postprocess_s, times.total_s) > 0
    # the fakes report more than the call took
    assert (times.encode_queue_s, times.decode_queue_s) == (0, 0)


def test_default_model_is_the_first_that_offers_the_task() -> None:
    answer = predict(make_core(), task="visual_question_answering", question="what is it?")
    assert (answer.model.id, answer.result) == (FLORENCE_ID, TextResult("a circle", True))
    without_questions = dataclasses.replace(
        FLORENCE, tasks={"visual_question_answering": TaskOverride(None)}
    )
    core = make_core(entries=(without_questions, PALIGEMMA))
    answer = predict(core, task="visual_question_answering", question="what is it?")
    assert (answer.model.id, answer.result) == (PALIGEMMA_ID, TextResult("circle", True))


def test_named_model_answers() -> None:
    assert predict(make_core(), task="ocr", model=PALIGEMMA_ID).model.id == PALIGEMMA_ID


def test_unknown_model_is_named() -> None:
    with pytest.raises(UnknownModel, match="'florence-3'"):
        predict(make_core(), task="ocr", model="florence-3")
    with pytest.raises(UnknownModel, match="'florence-3'") as caught:
        compare(make_core(), task="ocr", models=[FLORENCE_ID, "florence-3"])
    assert caught.value.param == "models"


def test_empty_model_id_is_refused() -> None:
    with pytest.raises(ServiceError) as caught:
        predict(make_core(), task="ocr", model="")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"task": "object_detection", "model": PALIGEMMA_ID}, UnsupportedTask, "task"),
        (
            {"task": "captioning", "detail": "paragraph", "model": PALIGEMMA_ID},
            UnsupportedTask,
            "detail",
        ),
        ({"task": "captioning", "language": "fr"}, UnsupportedTask, "language"),
        ({"task": "region_description", "region": [0, 0, 641, 480]}, InvalidRequest, "region"),
    ],
)
def test_unsupported_request_names_the_field(
    fields: dict[str, Any], error: type[ServiceError], param: str
) -> None:
    encoder = FakeEncoder()
    with pytest.raises(error) as caught:
        predict(make_core(encoders={FLORENCE_ID: encoder, PALIGEMMA_ID: encoder}), **fields)
    assert caught.value.param == param
    assert encoder.shapes == []  # refused before any work


def test_region_is_checked_against_the_upright_image() -> None:
    decoder = FakeDecoder(
        {"What does the region <loc_0><loc_0><loc_999><loc_999> describe?": "all"}
    )
    core = make_core(decoders={FLORENCE_ID: decoder})
    assert predict(core, task="region_description", region=[0, 0, 640, 480]).result == TextResult(
        "all", True
    )


def test_number_of_prompt_tokens_comes_from_the_decoder() -> None:
    assert (
        predict(make_core(), task="ocr").written.sequences[0].num_prompt_tokens == NUM_PROMPT_TOKENS
    )


def test_requests_in_flight_at_a_runner_are_limited() -> None:
    def num_waiting() -> float | None:
        return REGISTRY.get_sample_value(
            "diptych_queue_depth", {"model": FLORENCE_ID, "stage": "admission"}
        )

    async def predict_eight() -> int:
        decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
        core = make_core(decoders={FLORENCE_ID: decoder}, max_running=2)
        tasks = [
            asyncio.create_task(core.predict(PNG, {"task": "ocr"}, context())) for _ in range(8)
        ]
        await until(lambda: num_waiting() == 6 and len(decoder.specs) >= 2)
        num_running = len(decoder.specs)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return num_running

    assert run(predict_eight()) == 2


def detections(core: Core, **fields: Any) -> tuple[Detection, ...]:
    result = predict(core, **{"task": "object_detection"} | fields).result
    assert isinstance(result, DetectionsResult)
    return result.detections


def test_objects_below_the_minimum_score_are_left_out() -> None:
    assert len(detections(make_core(), min_score=SCORE - 0.01)) == 1
    assert detections(make_core(), min_score=SCORE + 0.01) == ()


def test_overlapping_objects_are_suppressed_on_request() -> None:
    twice = FLORENCE_ANSWERS[OD_PROMPT] * 2
    core = make_core(decoders={FLORENCE_ID: FakeDecoder({OD_PROMPT: twice})})
    assert len(detections(core)) == 2
    assert len(detections(core, nms_iou=0.5)) == 1


def test_the_scores_of_a_calibrated_task_are_calibrated_unless_the_answer_is_sampled() -> None:
    core = make_core()
    model = core.models.get(FLORENCE_ID)
    calibration = Calibration(
        model.id, model.manifest.checkpoint, "object_detection", (0.0, 1.0), (0.0, 0.5)
    )
    model = dataclasses.replace(model, calibrations={("object_detection", False): calibration})
    core.models = ServedModels({model.id: model})
    answer, sampled = (
        predict(core, task="object_detection", temperature=value, seed=1) for value in (0.0, 1.0)
    )
    (detection,) = cast("DetectionsResult", answer.result).detections
    assert (answer.is_calibrated, sampled.is_calibrated) == (True, False)
    assert detection.score == pytest.approx(SCORE / 2)
    assert not predict(core, **LABELS).is_calibrated
