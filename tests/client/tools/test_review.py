"""Label errors: what models contradict, and a person's labels merged into the dataset."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych_client import Detection, DetectionsResult
from diptych_client.datasets.dataset import (
    Dataset,
    LabelledImage,
    TrueObject,
    TruePhrase,
    TrueQuestion,
)
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.inputs import Folder, ImageFile
from diptych_client.geometry import BoxXyxy
from diptych_client.tools.matching import LabelledBox
from diptych_client.tools.review import (
    Suspect,
    find_contradictions,
    merge_labels,
    merge_suspects,
    to_row,
)
from tests.support.client_answers import answer
from tests.support.evaluations import detection, write_images

BOX = (10.0, 10.0, 30.0, 30.0)
FAR = (60.0, 40.0, 80.0, 60.0)
CAR = LabelledBox("car", BOX)
RECALLS = {"car": 0.75}


def box(x: float) -> BoxXyxy:
    return (x, 10.0, x + 20, 30.0)


@pytest.mark.parametrize(
    ("labels", "detections", "kind", "suspicion"),
    [
        ([CAR], [detection("car", box(12))], None, 0),  # IoU 0.82
        ([], [detection("car", BOX)], "missing", 0.9),
        ([CAR], [detection("car", BOX), detection("car", box(20))], "missing", 0.6),  # IoU 1/3
        ([CAR], [detection("dog", BOX)], "other class", 0.9),
        ([CAR], [Detection(BOX, "dog")], "other class", 0.5),  # without a score
        ([CAR], [detection("car", box(14))], "moved", 0.9 * 0.6),  # IoU 2/3: 4 of 10 thresholds
        ([CAR], [detection("car", box(20))], "moved", 0.9),
        ([CAR], [], "extra", 0.75),
        ([LabelledBox("car", BOX, True)], [], None, 0),
        ([LabelledBox("car", (0, 0, 90, 70), True)], [detection("car", BOX)] * 2, None, 0),
    ],
)
def test_kinds_of_contradictions(
    labels: Sequence[LabelledBox], detections: Sequence[Detection], kind: str, suspicion: float
) -> None:
    answered = answer(DetectionsResult(tuple(detections)), model="first")
    suspects = list(find_contradictions(labels, answered, RECALLS))
    rows = [(suspect.kind, round(suspect.suspicion, 6)) for suspect in suspects]
    assert rows == ([] if kind is None else [(kind, round(suspicion, 6))])
    for familiarity, weight in ((0.01, 1), (0.009, 0.1)):
        others = find_contradictions(labels, replace(answered, familiarity=familiarity), RECALLS)
        for suspect, other in zip(suspects, others, strict=True):
            assert other.suspicion == pytest.approx(weight * suspect.suspicion)


def test_models_are_averaged() -> None:
    labels = [CAR, LabelledBox("car", FAR)]
    found = {
        "first": [
            detection("dog", BOX, 0.8),
            detection("car", FAR),
            detection("dog", box(40), 0.5),
        ],
        "second": [
            detection("car", BOX),
            detection("dog", box(42), 0.7),
            detection("dog", box(75)),
        ],
    }
    by_model = list[list[Suspect]]()
    for model, detections in found.items():
        result = DetectionsResult(tuple(detections))
        by_model.append(list(find_contradictions(labels, answer(result, model=model), RECALLS)))
    suspects = merge_suspects(by_model)
    assert [(row.kind, round(row.suspicion, 6), row.model) for row in suspects] == [
        ("missing", 0.6, "second"),
        ("missing", 0.45, "second"),
        ("other class", 0.4, "first"),
        ("extra", 0.375, "second"),
    ]
    assert [row.label for row in suspects] == [None, None, *labels]
    assert suspects[0].suggested == detection("dog", box(42), 0.7)  # the surest


def test_an_object_is_suspect_once() -> None:
    result = DetectionsResult((detection("car", box(40), 0.8), detection("car", box(42), 0.6)))
    (suspect,) = merge_suspects([list(find_contradictions([], answer(result), RECALLS))])
    assert suspect.suspicion == 0.8


MASK = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0]]
MASKED = TrueObject("car", BOX, MASK)
OTHERS: dict[str, Any] = {
    "captions": ("two", "captions"),
    "text": "EXIT",
    "region": BOX,
    "questions": (TrueQuestion("how many?", ("2", "two")),),
    "phrases": (TruePhrase("left car", None, MASK), TruePhrase("dog", BOX)),
}
CROWD = TrueObject("dog", (0.0, 0.0, 50.0, 50.0), {"size": [80, 100], "counts": [0, 8000]}, True)


@pytest.mark.parametrize(
    ("reviewed", "objects"),
    [
        (None, (MASKED, CROWD)),
        ([], (CROWD,)),
        ([TrueObject("car", (10.04, 10.0, 30.0, 29.96))], (MASKED, CROWD)),  # rounded
        ([TrueObject("car", (10.06, 10.0, 30.0, 30.0))], None),
        ([TrueObject("dog", BOX)], None),
        ([TrueObject("car", BOX), TrueObject("suggested: dog", BOX)], (MASKED, CROWD)),
        ([TrueObject("car", BOX)] * 2, (MASKED, CROWD, TrueObject("car", BOX))),
    ],
)
def test_only_changes_are_merged(
    tmp_path: Path,
    reviewed: list[TrueObject] | None,
    objects: tuple[TrueObject, ...] | None,
) -> None:
    write_images(tmp_path)
    images = [LabelledImage(Folder(tmp_path).image(name), **OTHERS) for name in ("a.png", "b.png")]
    images[0] = replace(images[0], objects=(MASKED, CROWD))
    dataset = Dataset(images, Folder(tmp_path), ("dog", "car"))
    labels = None if reviewed is None else tuple(reviewed)
    other = replace(dataset, images=[LabelledImage(ImageFile("a.png", 9, 9), labels)])
    result, num_changed = merge_labels(dataset, other)
    expected = (CROWD, *(labels or ())) if objects is None else objects
    assert result == [replace(images[0], objects=expected), images[1]]
    assert num_changed == int(expected != (MASKED, CROWD))
    path = tmp_path / "merged.jsonl"
    path.write_text("".join(json.dumps(to_row(labelled)) + "\n" for labelled in result))
    assert read_dataset(path).images == result
