"""AP equals pycocotools', for all images and for resampled ones; calibration of scores."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diptych_client.datasets.dataset import TrueObject
from diptych_client.datasets.long_runs import RunError
from diptych_client.geometry import BoxXyxy, ImageSize, corners
from diptych_client.results import Detection, Instance, Item
from diptych_client.tools.objects import (
    MIN_ANSWERS,
    ObjectsMeasure,
    ScoredAnswers,
    average_precision,
    fit_calibration,
    isotonic,
)
from diptych_client.tools.questions import ClassNames, ObjectsTruth
from tasks.scores import read_calibrations
from tests.support.evaluations import prediction

CLASSES = ("car", "dog", "cat")
NAMES = ClassNames(CLASSES, {name: name for name in CLASSES})
SIZE = ImageSize(200, 150)
NUM_IMAGES = 40
CAR: BoxXyxy = (10, 10, 40, 30)
TASK = "object_detection"
MODEL: Any = SimpleNamespace(id="m", checkpoint="c", precision="float32")
Sample = tuple[tuple[TrueObject, ...], tuple[Item, ...]]


def random_samples(seed: int, has_masks: bool = False) -> list[Sample]:
    """Return objects, one in eight a crowd, and shaken, lost, confused and invented answers."""
    rng = np.random.default_rng(seed)

    def random_box() -> BoxXyxy:
        x, y = rng.uniform(0, 100), rng.uniform(0, 80)
        return (x, y, x + rng.uniform(5, 99), y + rng.uniform(5, 69))

    def answer(box: BoxXyxy, label: str) -> Item:
        if not has_masks:
            return Detection(box, label, float(rng.random()))
        return Instance(box, label, float(rng.random()), (corners(box),))

    samples = []
    for _ in range(NUM_IMAGES):
        truths = []
        answers = list[Item]()
        for _ in range(rng.integers(0, 5)):
            box = random_box()
            label = CLASSES[rng.integers(3)]
            outline = [list(chain.from_iterable(corners(box)))] if has_masks else None
            is_crowd = bool(rng.random() < 0.125)
            truths.append(TrueObject(label, box, outline, is_crowd=is_crowd))
            if rng.random() < 0.8:
                x1, y1, x2, y2 = (np.array(box) + rng.normal(0, 4, 4)).tolist()
                answers.append(answer((x1, y1, x2, y2), label if rng.random() < 0.8 else "cat"))
        if rng.random() < 0.4:
            answers.append(answer(random_box(), CLASSES[rng.integers(3)]))
        samples.append((tuple(truths), tuple(answers)))
    return samples


def measured(samples: Sequence[Sample]) -> ObjectsMeasure:
    measure = ObjectsMeasure(NAMES)
    for truths, answers in samples:
        measure.add(ObjectsTruth(truths), prediction(answers, image=SIZE))
    return measure


def reference(samples: Sequence[Sample], iou_type: str) -> Any:
    """Return pycocotools' own evaluation, without code of the client."""
    annotations: list[dict[str, Any]] = []
    results: Any = []
    for image_id, (truths, answers) in enumerate(samples, 1):
        for true in truths:
            row = coco_row(image_id, true.label, true.box_xyxy)
            row |= {"id": len(annotations) + 1, "iscrowd": int(true.is_crowd)}
            row["area"] = row["bbox"][2] * row["bbox"][3]
            if true.segmentation is not None:
                row["segmentation"] = true.segmentation
            annotations.append(row)
        for item in answers:
            assert isinstance(item, Detection | Instance)
            row = coco_row(image_id, item.label, item.box_xyxy) | {"score": item.score}
            if isinstance(item, Instance):
                del row["bbox"]
                row["segmentation"] = run_lengths(item.box_xyxy)
            results.append(row)
    numbers = range(1, len(samples) + 1)
    images = [{"id": number, "width": SIZE.width, "height": SIZE.height} for number in numbers]
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    coco: Any = COCO()
    coco.dataset = document
    coco.createIndex()
    evaluation: Any = COCOeval(coco, coco.loadRes(results), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def coco_row(image_id: int, label: str, box: BoxXyxy) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    ids = {"image_id": image_id, "category_id": CLASSES.index(label) + 1}
    return {**ids, "bbox": [x1, y1, x2 - x1, y2 - y1]}


def run_lengths(box: BoxXyxy) -> dict[str, Any]:
    """Return the pixels whose centres are in the box."""
    x1, y1, x2, y2 = box
    xs = np.arange(SIZE.width) + 0.5
    ys = np.arange(SIZE.height) + 0.5
    inside = ((ys >= y1) & (ys < y2))[:, None] & ((xs >= x1) & (xs < x2))[None]
    rle: Any = coco_mask.encode(np.asfortranarray(inside, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize(("has_masks", "iou_type"), [(False, "bbox"), (True, "segm")])
@pytest.mark.parametrize("seed", [1, 2])
def test_ap_is_that_of_pycocotools(has_masks: bool, iou_type: Any, seed: int) -> None:
    samples = random_samples(seed, has_masks)
    measure = measured(samples)
    matches = measure.matches(iou_type)
    expected = reference(samples, iou_type)
    every: Any = slice(None)
    thresholds: tuple[Any, ...] = (every, [0], [5])
    weights = np.ones(len(samples))
    precisions = [average_precision(matches, ious)(weights) for ious in thresholds]
    np.testing.assert_allclose(precisions, expected.stats[:3], atol=1e-6)
    for index, label in enumerate(CLASSES):
        of_class = expected.eval["precision"][:, :, index, 0, -1]
        details = measure.details()
        average = of_class[of_class > -1].mean()
        assert details.by_class[label]["AP"] == pytest.approx(100 * average, abs=1e-6)


@pytest.mark.parametrize("seed", [3, 4])
def test_resample_repeats_its_images(seed: int) -> None:
    samples = random_samples(seed)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.integers(NUM_IMAGES, size=NUM_IMAGES))
    weights = np.bincount(drawn, minlength=NUM_IMAGES).astype(float)
    measure = measured(samples)
    metrics = {metric.name: metric.value for metric in measure.metrics()}
    expected = reference([samples[index] for index in drawn], "bbox")
    assert metrics["mAP"](weights) == pytest.approx(expected.stats[0], abs=1e-6)
    assert metrics["mAP50"](weights) == pytest.approx(expected.stats[1], abs=1e-6)


def test_missing_and_unknown_labels_are_counted() -> None:
    missed = ((TrueObject("car", (0, 0, 9, 9)),), ())
    measure = measured([missed, ((), (Detection((0, 0, 9, 9), "tree", 1.0),))])
    details = measure.details()
    assert details.kinds == {"missed": 1, "extra": 1}
    assert (details.by_class["car"]["AP"], details.by_class["car"]["objects"]) == (0, 1)
    assert np.isnan(details.by_class["dog"]["AP"])  # there is none to find
    values = {metric.name: metric.value(np.array([1.0, 0.0])) for metric in measure.metrics()}
    assert (values["mAP"], values["recall"]) == (0, 0)
    assert np.isnan(values["precision"])


def test_object_is_right_with_label_and_half_its_area() -> None:
    answers = (
        Detection(CAR, "car", 0.9),
        Detection(CAR, "dog", 0.8),
        Detection((30, 10, 60, 30), "car", 0.7),
    )
    measure = ObjectsMeasure(NAMES)
    outcome = measure.add(ObjectsTruth((TrueObject("car", CAR),)), prediction(answers))
    assert outcome.error == 1 - 2 / 4
    wrong = Detection((0, 0, 5, 5), "car", 0.6)
    measure.add(ObjectsTruth(()), prediction([replace(wrong, score=None), wrong]))
    crowd = TrueObject("car", CAR, is_crowd=True)
    measure.add(ObjectsTruth((crowd,)), prediction([Detection(CAR, "car", None)]))  # ignored
    scored = measure.scored()
    assert scored.num_unscored == 1  # by its engine; it is not of the score 0
    assert measure.details().kinds == {"right": 1, "extra": 4}
    loosely = measured([((TrueObject("car", CAR),), (Detection((10, 10, 30, 30), "car", 1.0),))])
    assert loosely.details().kinds == {"loosely placed": 1}
    rows = sorted(zip(scored.scores.tolist(), scored.is_right.tolist(), strict=True), reverse=True)
    assert rows == [(0.9, True), (0.8, False), (0.7, False), (0.6, False)]
    assert measure.details().calibration_error == pytest.approx(100 * (0.1 + 0.8 + 0.7 + 0.6) / 4)


def answered(scores: ArrayLike, is_right: ArrayLike, is_calibrated: bool = False) -> ScoredAnswers:
    values = np.asarray(scores, dtype=float)
    return ScoredAnswers(values, np.asarray(is_right, dtype=bool), is_calibrated)


def overconfident(num_answers: int, seed: int) -> ScoredAnswers:
    """Return answers that are right with the square of their score."""
    rng = np.random.default_rng(seed)
    scores = rng.random(num_answers)
    return answered(scores, rng.random(num_answers) < scores**2)


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60))
def test_fit_is_the_best_non_decreasing_one(pairs: list[tuple[int, bool]]) -> None:
    """By the min-max formula (Barlow et al., 1972, theorem 1.4)."""
    scores = np.array([score / 20 for score, _ in pairs])
    is_right = np.array([right for _, right in pairs])
    xs, ys = isotonic(scores, is_right)
    levels = np.unique(scores)
    for level in levels:
        minima = []
        for low in levels[levels <= level]:
            ranges = [(scores >= low) & (scores <= high) for high in levels[levels >= level]]
            minima.append(min(is_right[is_in].mean() for is_in in ranges))
        assert np.interp(level, xs, ys) == pytest.approx(max(minima))


def test_gap_is_mean_distance_of_score_and_share() -> None:
    answers = answered([0.9, 0.9, 0.1, 0.1], [True, False, False, False])
    assert answers.calibration_error() == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert np.isnan(answered([], []).calibration_error())
    last_bin = answered([1.0, 0.95], [True, False])
    assert last_bin.calibration_error() == pytest.approx(0.475)


def test_file_calibrates_unseen_answers(tmp_path: Path) -> None:
    answers = overconfident(4000, seed=0)
    fitted = [fit_calibration(MODEL, TASK, answers, with_tiles) for with_tiles in (False, True)]
    (tmp_path / "c.json").write_text(json.dumps({"calibrations": fitted}))
    calibration, tiled = read_calibrations(tmp_path / "c.json")  # the service's reader
    assert (calibration.with_tiles, tiled.with_tiles) == (False, True)
    unseen = overconfident(4000, seed=1)
    scores = [calibration.probability(score) for score in unseen.scores]
    calibrated = answered(scores, unseen.is_right)
    assert unseen.calibration_error() > 0.15
    assert calibrated.calibration_error() < 0.03


def embedded(vectors: ArrayLike) -> list[str]:
    rows = np.asarray(vectors, "<f4")
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


@pytest.mark.parametrize("num_features", [3, 200])  # fewer than the components, and more
def test_file_tells_images_apart(tmp_path: Path, num_features: int) -> None:
    rng = np.random.default_rng(0)
    spread = np.geomspace(100, 0.1, num_features)
    vectors = 1000 + spread * rng.normal(size=(2000, num_features))
    answers = replace(overconfident(MIN_ANSWERS, 0), embeddings=embedded(vectors[:1000]))
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"calibrations": [fit_calibration(MODEL, TASK, answers)]}))
    (calibration,) = read_calibrations(path)  # the service's reader
    images = calibration.images
    assert images is not None
    assert len(images.distances) == 500

    def values(rows: ArrayLike) -> Any:
        return np.array([images.familiarity(row) for row in embedded(rows)], dtype=float)

    unseen = values(vectors[1000:])
    for level in (0.01, 0.1, 0.5):
        assert (unseen < level).mean() == pytest.approx(level, abs=0.1 * (1 - level))
    assert np.median(unseen) == pytest.approx(0.5, abs=0.1)
    assert values(vectors[:1] + 100 * spread) == pytest.approx(1 / 501)
    off_axis = np.zeros(num_features)
    off_axis[-1] = 100
    assert values(vectors[:1] + off_axis) == pytest.approx(1 / 501)


def test_few_images_are_not_told_apart() -> None:
    for num_images, num_references in ((199, None), (200, 100), (2600, 1000)):
        vectors = np.random.default_rng(0).normal(size=(num_images, 2))
        answers = replace(overconfident(MIN_ANSWERS, 0), embeddings=embedded(vectors))
        images = fit_calibration(MODEL, TASK, answers)["images"]
        assert (images and len(images["distances"])) == num_references
    equal = replace(overconfident(MIN_ANSWERS, 0), embeddings=embedded(np.ones((200, 2))))
    assert min(fit_calibration(MODEL, TASK, equal)["images"]["variances"]) > 0


FEW = f"needs {MIN_ANSWERS} answered objects with scores; m answered {MIN_ANSWERS - 1}"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "needs a task and a dataset with objects"),
        (overconfident(MIN_ANSWERS - 1, 0), f"{FEW}$"),
        (
            replace(overconfident(MIN_ANSWERS - 1, 0), num_unscored=9),
            f"{FEW}, and 9 without: ",
        ),
        (replace(answered([], []), num_unscored=9), "m answered 0, and 9 without"),
        (answered(np.ones(MIN_ANSWERS), np.ones(MIN_ANSWERS), True), "DIPTYCH_CALIBRATION=off"),
    ],
)
def test_other_answers_are_not_calibrated(answers: ScoredAnswers | None, message: str) -> None:
    with pytest.raises(RunError, match=message):
        fit_calibration(MODEL, TASK, answers)
    assert fit_calibration(MODEL, TASK, overconfident(MIN_ANSWERS, 0))
