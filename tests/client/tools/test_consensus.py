"""Labels that two models agree on, and the review list."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diptych_client import AnswerOptions, Detection, DetectionsResult, TaskParameters
from diptych_client.datasets.formats.writing import DatasetFormat, Target, write_dataset
from diptych_client.datasets.inputs import ImageFile
from diptych_client.datasets.long_runs import Outputs
from diptych_client.datasets.records import Job, Record
from diptych_client.results import Result
from diptych_client.tools.consensus import ANY, find_agreement, write_consensus
from tests.support.client_answers import record

CAR = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (1.0, 0.0, 11.0, 10.0)  # IoU 9/11
HALF = (0.0, 0.0, 5.0, 10.0)
FAR = (20.0, 0.0, 30.0, 10.0)
JOB = Job("open_vocabulary_detection", "a", TaskParameters(labels=("car", "dog")), AnswerOptions())

CAR_5 = Detection(CAR, "car", 0.5)
CAR_9 = Detection(CAR, "car", 0.9)
SHIFTED_9 = Detection(SHIFTED, "Car", 0.9)
DOG_2 = Detection(SHIFTED, "dog", 0.2)
DOG_9 = Detection(CAR, "dog", 0.9)
FAR_9 = Detection(FAR, "car", 0.9)
UNSCORED = Detection(CAR, "car", None)
VEHICLE_8 = Detection(CAR, "vehicle", 0.8)
HALF_9 = Detection(HALF, "car", 0.9)
HALF_DOG = Detection(HALF, "dog", 0.2)
RULE = (0.5, 0.0)  # the least IoU and score

Boxes = tuple[Detection, ...]


def answered(model: str, result: Result, name: str = "a.png") -> Record:
    entry = record(result, name)
    return replace(entry, answer=replace(entry.answer, model=model))


@pytest.mark.parametrize(
    ("first", "second", "rule", "accepted", "differing"),
    [
        ((CAR_5,), (SHIFTED_9,), RULE, (SHIFTED_9,), ()),  # the better score
        ((SHIFTED_9,), (CAR_5,), RULE, (SHIFTED_9,), ()),
        ((CAR_5,), (DOG_9,), RULE, (), (("a", CAR_5), ("b", DOG_9))),
        ((CAR_5,), (FAR_9,), RULE, (), (("a", CAR_5), ("b", FAR_9))),
        ((CAR_5,), (HALF_9,), RULE, (HALF_9,), ()),  # IoU 0.5
        # one model also calls it otherwise
        ((CAR_9, DOG_2), (CAR_9,), RULE, (), (("a", CAR_9), ("a", DOG_2), ("b", CAR_9))),
        ((CAR_9, HALF_DOG), (CAR_9,), RULE, (), (("a", CAR_9), ("a", HALF_DOG), ("b", CAR_9))),
        # both models give both labels
        ((CAR_9, VEHICLE_8), (CAR_9, VEHICLE_8), RULE, (CAR_9, VEHICLE_8), ()),
        # one box agrees with one other
        ((CAR_5,), (SHIFTED_9, CAR_5), RULE, (CAR_5,), (("b", SHIFTED_9),)),
        ((CAR_5,), (SHIFTED_9,), (0.8, 0.0), (SHIFTED_9,), ()),
        ((CAR_5,), (SHIFTED_9,), (0.9, 0.0), (), (("a", CAR_5), ("b", SHIFTED_9))),
        ((CAR_5,), (DOG_9,), (0, 0.0), (), (("a", CAR_5), ("b", DOG_9))),
        ((CAR_9,), (CAR_5,), (0.5, 0.5), (CAR_9,), ()),
        ((UNSCORED,), (CAR_5,), RULE, (CAR_5,), ()),
        ((UNSCORED,), (CAR_5,), (0.5, 0.1), (), (("a", UNSCORED), ("b", CAR_5))),
        ((CAR_9,), (CAR_5,), (0.5, 0.51), (), (("a", CAR_9), ("b", CAR_5))),
    ],
)
def test_boxes_agree_by_label_place_and_score(
    first: Boxes,
    second: Boxes,
    rule: tuple[float, float],
    accepted: Boxes,
    differing: tuple[tuple[str, Detection], ...],
) -> None:
    records = (answered("a", DetectionsResult(first)), answered("b", DetectionsResult(second)))
    min_iou, least = rule
    agreed = find_agreement(records, min_iou, {ANY: least})
    assert (agreed.accepted, agreed.differing) == (accepted, differing)


def test_one_model_is_accepted_from_a_score() -> None:
    only = answered("a", DetectionsResult((CAR_9, FAR_9, CAR_5)))
    agreed = find_agreement((only,), 0.5, {ANY: 0.9})
    assert (agreed.accepted, agreed.confidences) == ((CAR_9, FAR_9), (0.9, 0.9))
    assert agreed.differing == (("a", CAR_5),)
    pair = find_agreement((only, answered("b", DetectionsResult((CAR_5,)))), 0.5, {ANY: 0.0})
    assert pair.confidences == (0.5,)  # the lower score
    unscored = answered("b", DetectionsResult((replace(CAR_5, score=None),)))
    assert find_agreement((only, unscored), 0.5, {ANY: 0.0}).confidences == (0.0,)


@pytest.mark.parametrize(
    ("familiarity", "is_unlike"), [(None, False), (0.01, False), (0.009, True)]
)
def test_unlike_images_are_reviewed_whole(
    familiarity: float | None, is_unlike: bool, tmp_path: Path
) -> None:
    first = answered("a", DetectionsResult((CAR_9,)))
    second = replace(first, answer=replace(first.answer, familiarity=familiarity, model="b"))
    empty = replace(second, answer=replace(second.answer, result=DetectionsResult(())))
    images = [(first, second), (replace(empty, image=ImageFile("b.png", 1, 1)),) * 2]
    dataset = json.loads(written(tmp_path, images).read_text())
    review = json.loads((tmp_path / "review.json").read_text())
    boxes = [(row["review"], row["model"]) for row in review["annotations"]]
    counts = (len(dataset["images"]), len(dataset["annotations"]), len(review["images"]), boxes)
    assert counts == ((0, 0, 2, [(True, "a"), (True, "b")]) if is_unlike else (2, 1, 0, []))
    assert not any("review" in row for row in dataset["annotations"])


@pytest.mark.parametrize("dataset_format", ["yolo", "voc", "labelme"])
def test_unlike_images_leave_the_dataset(dataset_format: DatasetFormat, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    known = answered("a", DetectionsResult((CAR_9,)))
    unlike = replace(known, answer=replace(known.answer, familiarity=0.0))
    with Outputs(tmp_path / "out") as outputs:
        target = Target(dataset_format, outputs, tmp_path, JOB, 0.5)
        write_dataset(target, [known])
        assert len(list(outputs.folder.rglob("a.*"))) == 2
        write_consensus(target, [find_agreement((unlike,), 0.5, {})])
        assert not list(outputs.folder.rglob("a.*"))


def written(out: Path, pairs: Sequence[tuple[Record, Record]]) -> Path:
    agreements = [find_agreement(pair, 0.5, {ANY: 0.0}) for pair in pairs]
    with Outputs(out) as outputs:
        return write_consensus(Target("coco", outputs, out, JOB), agreements)[0]
