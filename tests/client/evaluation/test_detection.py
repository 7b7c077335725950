"""AP equals pycocotools', for all images and for resampled ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diptych_client.evaluation.dataset import TrueObject
from diptych_client.evaluation.objects import ObjectsMeasure
from diptych_client.evaluation.questions import ClassNames, ObjectsTruth
from diptych_client.geometry import BoxXyxy, ImageSize
from diptych_client.results import Detection, Instance, Item
from tests.support.evaluations import prediction

CLASSES = ("car", "dog", "cat")
NAMES = ClassNames(CLASSES, {name: name for name in CLASSES})
SIZE = ImageSize(200, 150)
NUM_IMAGES = 40
Sample = tuple[tuple[TrueObject, ...], tuple[Item, ...]]


def corners(box: BoxXyxy) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def random_box(rng: np.random.Generator) -> BoxXyxy:
    x = rng.uniform(0, 100)
    y = rng.uniform(0, 80)
    width = rng.uniform(5, 99)
    height = rng.uniform(5, 69)
    return (x, y, x + width, y + height)


def random_samples(seed: int, has_masks: bool = False) -> list[Sample]:
    """Return objects, one in eight a crowd, and shaken, lost, confused and invented answers."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(NUM_IMAGES):
        truths = []
        answers = list[Item]()
        for _ in range(rng.integers(0, 5)):
            box = random_box(rng)
            label = CLASSES[rng.integers(3)]
            truths.append(
                TrueObject(
                    label,
                    box,
                    [corners(box)] if has_masks else None,
                    is_crowd=bool(rng.random() < 0.125),
                )
            )
            if rng.random() < 0.8:
                x1, y1, x2, y2 = (np.array(box) + rng.normal(0, 4, 4)).tolist()
                given = label if rng.random() < 0.8 else "cat"
                answers.append(answer((x1, y1, x2, y2), given, rng, has_masks))
        if rng.random() < 0.4:
            answers.append(answer(random_box(rng), CLASSES[rng.integers(3)], rng, has_masks))
        samples.append((tuple(truths), tuple(answers)))
    return samples


def answer(box: BoxXyxy, label: str, rng: np.random.Generator, has_masks: bool) -> Item:
    score = float(rng.random())
    if not has_masks:
        return Detection(box, label, score)
    points = corners(box)
    return Instance(box, label, score, (tuple(zip(points[::2], points[1::2], strict=True)),))


def measured(samples: Sequence[Sample]) -> ObjectsMeasure:
    measure = ObjectsMeasure(NAMES)
    for truths, answers in samples:
        measure.add(ObjectsTruth(truths), prediction(answers, image=SIZE))
    return measure


def reference(samples: Sequence[Sample], folder: Path, iou_type: str) -> Any:
    """Return pycocotools' own evaluation of files that are written here, without code of the
    client.
    """
    annotations = []
    results = []
    for image_id, (truths, answers) in enumerate(samples, 1):
        for each in truths:
            annotations.append(
                row(image_id, each.label, each.box_xyxy) | {"iscrowd": int(each.is_crowd)}
            )
            annotations[-1] |= {
                "id": len(annotations),
                "area": annotations[-1]["bbox"][2] * annotations[-1]["bbox"][3],
            }
            annotations[-1] |= (
                {} if each.segmentation is None else {"segmentation": each.segmentation}
            )
        for item in answers:
            assert isinstance(item, Detection | Instance)
            results.append(row(image_id, item.label, item.box_xyxy) | {"score": item.score})
            if isinstance(item, Instance):
                del results[-1]["bbox"]
                results[-1]["segmentation"] = mask_rows(item)
    images = [
        {"id": i + 1, "width": SIZE.width, "height": SIZE.height} for i in range(len(samples))
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "results.json").write_text(json.dumps(results))
    coco: Any = COCO(folder / "truth.json")
    evaluation: Any = COCOeval(coco, coco.loadRes(str(folder / "results.json")), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def row(image_id: int, label: str, box: BoxXyxy) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        "image_id": image_id,
        "category_id": CLASSES.index(label) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }


def mask_rows(item: Instance) -> Mapping[str, Any]:
    """Return the pixels whose centres are in the box as run lengths, counted here."""
    x1, y1, x2, y2 = item.box_xyxy
    xs = np.arange(SIZE.width) + 0.5
    ys = np.arange(SIZE.height) + 0.5
    inside = ((ys >= y1) & (ys < y2))[:, None] & ((xs >= x1) & (xs < x2))[None]
    flat = inside.T.reshape(-1).astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], ends, [flat.size]))).tolist()
    uncompressed = {"size": [SIZE.height, SIZE.width], "counts": ([0] if flat[0] else []) + runs}
    rle: Any = coco_mask.frPyObjects(uncompressed, SIZE.height, SIZE.width)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize(("has_masks", "iou_type"), [(False, "bbox"), (True, "segm")])
@pytest.mark.parametrize("seed", [1, 2])
def test_ap_is_that_of_pycocotools(
    has_masks: bool, iou_type: Any, seed: int, tmp_path: Path
) -> None:
    samples = random_samples(seed, has_masks)
    scores = measured(samples).scores(iou_type)
    expected = reference(samples, tmp_path, iou_type)
    found = [
        scores.average_precision(),
        scores.average_precision(iou=0.5),
        scores.average_precision(iou=0.75),
    ]
    found += [scores.average_precision(size) for size in ("small", "medium", "large")]
    # pycocotools' value for "undefined"
    shown = [value if value == value else -1 for value in found]
    np.testing.assert_allclose(shown, expected.stats[:6], atol=1e-6)
    for index, label in enumerate(CLASSES):
        precision = expected.eval["precision"][:, :, index, 0, -1]
        assert scores.average_precision(label=label) == pytest.approx(
            precision[precision > -1].mean(), abs=1e-6
        )


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_resample_has_the_ap_of_the_repeated_images(seed: int, tmp_path: Path) -> None:
    samples = random_samples(seed)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.integers(NUM_IMAGES, size=NUM_IMAGES))
    weights = np.bincount(drawn, minlength=NUM_IMAGES).astype(float)
    metrics = {metric.name: metric.estimator for metric in measured(samples).metrics()}
    expected = reference([samples[index] for index in drawn], tmp_path, "bbox")
    assert metrics["mAP"].value(weights) == pytest.approx(expected.stats[0], abs=1e-6)
    assert metrics["mAP50"].value(weights) == pytest.approx(expected.stats[1], abs=1e-6)


def test_the_whole_dataset_is_the_resample_of_each_image_once() -> None:
    measure = measured(random_samples(6))
    metrics = {metric.name: metric.estimator for metric in measure.metrics()}
    ones = np.ones(NUM_IMAGES)
    assert metrics["mAP"].value(ones) == pytest.approx(
        measure.scores("bbox").average_precision(), abs=1e-9
    )


def test_counts_and_confusion_agree() -> None:
    measure = measured(random_samples(7))
    details = measure.details()
    assert details.confusion is not None
    matrix = np.array(details.confusion.counts)
    kinds = details.kinds
    num_right = kinds["right"] + kinds["loosely placed"]
    assert np.trace(matrix) == num_right
    others = kinds["wrong class"] + kinds["badly placed"]
    assert matrix[:-1].sum() == num_right + others + kinds["missed"]
    assert matrix[:, :-1].sum() == num_right + others + kinds["extra"]
    assert details.precision_by_score is not None
    assert details.recall_by_score is not None
    assert list(details.recall_by_score.ys) == sorted(details.recall_by_score.ys)


def test_the_curves_by_score_begin_with_the_best_answer_and_end_with_the_worst() -> None:
    scores = [0.5, 0.9, 0.7]
    truths = (TrueObject("car", (0, 0, 9, 9)), TrueObject("car", (20, 0, 29, 9)))
    # the first has an IoU of 0.52
    boxes: list[BoxXyxy] = [(20, 0, 29, 4.7), (0, 0, 9, 9), (50, 50, 59, 59)]
    answers = tuple(Detection(box, "car", score) for box, score in zip(boxes, scores, strict=True))
    details = measured([(truths, answers)]).details()
    assert details.precision_by_score is not None
    assert details.recall_by_score is not None
    assert details.precision_by_score.xs == details.recall_by_score.xs == [0.9, 0.7, 0.5]
    assert details.precision_by_score.ys == pytest.approx([1, 1 / 2, 2 / 3])
    assert details.recall_by_score.ys == [0.5, 0.5, 1]


def test_a_dataset_without_an_answer_has_no_precision() -> None:
    measure = measured([((TrueObject("car", (0, 0, 9, 9)),), ()), ((), ())])
    values = {metric.name: metric.estimator.value(np.ones(2)) for metric in measure.metrics()}
    assert (values["mAP"], values["recall"]) == (0, 0)
    assert np.isnan(values["precision"])
    assert measure.details().by_class["car"]["AP"] == 0
    assert np.isnan(measure.details().by_class["dog"]["AP"])  # there is none to find


def test_an_answer_of_no_class_is_counted_as_extra() -> None:
    measure = measured([((), (Detection((0, 0, 9, 9), "tree", 1.0),))])
    confusion = measure.details().confusion
    assert confusion is not None
    assert list(confusion.labels) == [*CLASSES, "other label", "none"]
    assert confusion.counts[-1][-2] == 1
