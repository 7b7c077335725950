"""Labels that two models agree on, and the review list."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pycocotools.coco import COCO

from diptych_client import (
    AnswerOptions,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    TaskParameters,
)
from diptych_client.evaluation.annotation.consensus import AgreementRule, agree, write_consensus
from diptych_client.evaluation.formats.writing import DatasetFormat, check_consensus
from diptych_client.evaluation.job import Job, Record
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import Result
from tests.support.client_answers import HOLE, SIZE, SQUARE, record

CAR = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (1.0, 0.0, 11.0, 10.0)
FAR = (20.0, 0.0, 30.0, 10.0)
JOB = Job("open_vocabulary_detection", "a", TaskParameters(labels=("car", "dog")), AnswerOptions())


def answered(model: str, result: Result, name: str = "a.png") -> Record:
    own = record(result, name)
    return replace(own, answer=replace(own.answer, model=model))


def boxes(*found: Detection) -> DetectionsResult:
    return DetectionsResult(found)


def test_a_box_of_both_models_is_accepted_from_the_one_with_the_higher_score() -> None:
    low = Detection(CAR, "car", 0.5)
    high = Detection(SHIFTED, "Car", 0.9)
    assert agree(
        answered("a", boxes(low)), answered("b", boxes(high)), AgreementRule()
    ).accepted == (high,)
    assert agree(
        answered("a", boxes(high)), answered("b", boxes(low)), AgreementRule()
    ).accepted == (high,)


@pytest.mark.parametrize("other", [Detection(CAR, "dog", 0.9), Detection(FAR, "car", 0.9)])
def test_boxes_of_another_label_or_place_are_left_for_review(other: Detection) -> None:
    own = Detection(CAR, "car", 0.5)
    agreement = agree(answered("a", boxes(own)), answered("b", boxes(other)), AgreementRule())
    assert agreement.accepted == ()
    assert agreement.differing == (("a", own), ("b", other))


def test_a_box_that_one_model_also_calls_otherwise_is_left_for_review() -> None:
    car = Detection(CAR, "car", 0.9)
    dog = Detection(SHIFTED, "dog", 0.2)
    agreement = agree(answered("a", boxes(car, dog)), answered("b", boxes(car)), AgreementRule())
    assert agreement.accepted == ()
    assert agreement.differing == (("a", car), ("a", dog), ("b", car))


def test_two_labels_of_a_place_that_both_models_give_agree() -> None:
    both = boxes(Detection(CAR, "car", 0.9), Detection(CAR, "vehicle", 0.8))
    assert (
        agree(answered("a", both), answered("b", both), AgreementRule()).accepted == both.detections
    )


def test_one_box_agrees_with_one_other() -> None:
    own = Detection(CAR, "car", 0.5)
    twice = (Detection(SHIFTED, "car", 0.4), Detection(CAR, "car", 0.3))
    agreement = agree(answered("a", boxes(own)), answered("b", boxes(*twice)), AgreementRule())
    assert agreement.accepted == (own,)
    assert agreement.differing == (("b", twice[0]),)


def test_the_minimum_iou_can_be_raised() -> None:
    pair = (
        answered("a", boxes(Detection(CAR, "car", 0.5))),
        answered("b", boxes(Detection(SHIFTED, "car", 0.5))),
    )
    assert agree(*pair, AgreementRule(min_iou=0.8)).accepted  # IoU 9/11
    assert not agree(*pair, AgreementRule(min_iou=0.9)).accepted


def test_a_minimum_iou_of_0_does_not_pair_different_labels() -> None:
    pair = (
        answered("a", boxes(Detection(CAR, "car", 0.5))),
        answered("b", boxes(Detection(CAR, "dog", 0.5))),
    )
    assert not agree(*pair, AgreementRule(min_iou=0)).accepted


def test_boxes_of_which_one_has_a_low_score_are_left_for_review() -> None:
    low = Detection(CAR, "car", 0.5)
    high = Detection(CAR, "car", 0.9)
    pair = answered("a", boxes(high)), answered("b", boxes(low))
    assert agree(*pair, AgreementRule(min_score=0.5)).accepted == (high,)
    uncertain = agree(*pair, AgreementRule(min_score=0.51))
    assert uncertain.accepted == ()
    assert uncertain.differing == (("a", high), ("b", low))


def written(out: Path, pairs: Sequence[tuple[Record, Record]]) -> Path:
    out.mkdir()
    agreements = [agree(*pair, AgreementRule()) for pair in pairs]
    with Outputs(out) as outputs:
        return write_consensus(DatasetFormat.coco, outputs, out, agreements, JOB)


def test_the_dataset_has_what_both_found_and_the_review_list_the_rest(tmp_path: Path) -> None:
    agreed = Detection(CAR, "car", 0.5)
    alone = Detection(FAR, "dog", 0.25)
    pairs = [
        (answered("a", boxes(agreed)), answered("b", boxes(agreed))),
        (answered("a", boxes(agreed), "b.png"), answered("b", boxes(agreed, alone), "b.png")),
    ]
    dataset = COCO(written(tmp_path / "out", pairs))
    review = COCO(tmp_path / "out" / "review.json")
    assert [each["file_name"] for each in dataset.imgs.values()] == ["a.png", "b.png"]
    assert [(each["image_id"], each["bbox"]) for each in dataset.anns.values()] == [
        (1, [0, 0, 10, 10]),
        (2, [0, 0, 10, 10]),
    ]
    assert not any("review" in each for each in dataset.anns.values())
    (image,) = review.imgs.values()
    (annotation,) = review.anns.values()
    assert image["file_name"] == "b.png"
    assert (annotation["review"], annotation["model"]) == (True, "b")
    assert review.cats[annotation["category_id"]]["name"] == "dog"


def test_label_studio_gets_the_answers_of_both_models_in_percent_of_the_image(
    tmp_path: Path,
) -> None:
    first = answered("a", boxes(Detection(CAR, "car", 0.5)))
    second = answered("b", boxes(Detection(FAR, "dog", 0.25)))
    written(tmp_path / "out", [(first, second), (first, first)])
    (task,) = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=a.png"}
    assert [each["model_version"] for each in task["predictions"]] == ["a", "b"]
    (region,) = task["predictions"][1]["result"]
    assert region == {
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": SIZE.width,
        "original_height": SIZE.height,
        "image_rotation": 0,
        "score": 0.25,
        "value": {
            "x": 50,
            "y": 0,
            "width": 25,
            "height": 50,
            "rotation": 0,
            "rectanglelabels": ["dog"],
        },
    }


def test_the_name_of_an_image_is_quoted_in_its_url(tmp_path: Path) -> None:
    first, second = (
        answered(model, boxes(Detection(CAR, model, 0.5)), "x/a&b+1 %.png") for model in "ab"
    )
    written(tmp_path / "out", [(first, second)])
    (task,) = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert parse_qs(urlsplit(task["data"]["image"]).query) == {"d": ["x/a&b+1 %.png"]}


def test_masks_are_polygons_in_label_studio_and_in_the_dataset(tmp_path: Path) -> None:
    ring = Instance((2.0, 2.0, 12.0, 12.0), "ring", 0.75, (SQUARE, HOLE))
    other = replace(ring, box_xyxy=(20.0, 2.0, 30.0, 12.0), label="disc")
    masks = answered("a", InstancesResult((ring, other))), answered("b", InstancesResult((ring,)))
    dataset = COCO(written(tmp_path / "out", [masks]))
    assert [each["area"] for each in dataset.anns.values()] == [84]
    (task,) = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    region = task["predictions"][1]["result"][0]
    assert region["type"] == "polygonlabels"
    assert region["value"]["polygonlabels"] == ["ring"]
    assert region["value"]["points"][0] == [5, 10]


@pytest.mark.parametrize(
    ("dataset_format", "result"),
    [(DatasetFormat.jsonl, "detections"), (DatasetFormat.coco, "text")],
)
def test_a_format_or_task_without_boxes_is_refused(
    dataset_format: DatasetFormat, result: str
) -> None:
    with pytest.raises(
        RunError, match="--consensus compares boxes and masks and writes coco or yolo"
    ):
        check_consensus(dataset_format, result)
