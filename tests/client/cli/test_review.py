"""`diptych review` over a scripted service: the ranking, files for a person, and their labels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diptych_client import DetectionsResult
from tests.client.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import SIZE, answer
from tests.support.evaluations import OBJECTS, detection, write_json_lines
from tests.support.scripted_services import Script, Step

TASK = "object_detection"
A, B = OBJECTS["a.png"], OBJECTS["b.png"]
CROWD = {"label": "dog", "box": [70.0, 50.0, 90.0, 70.0], "iscrowd": True}
CAT = detection("cat", (0, 0, 9, 9))  # not a class of the dataset
# c.png lacks a label; a box of a.png is of another class; b.png is of another kind of image
FOUND = {
    "a.png": [detection("car", A[0][1]), detection("car", A[1][1], 0.6), CAT],
    "b.png": [],
    "c.png": [detection("dog", (5, 5, 25, 25), 0.8), CAT],
}


def answers(model: str) -> list[Step]:
    rows = list[Step]()
    for name, detections in FOUND.items():
        row = answer(DetectionsResult(tuple(detections)), replace(SIZE, width=100, height=80))
        rows.append(replace(row, model=model, familiarity=0.001 if name == "b.png" else 0.5))
    return rows


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = write_json_lines(tmp_path / "images")
    row = {"image": "c.png", "objects": [CROWD]}  # lines of one image are joined
    with (folder / "labels.jsonl").open("a") as file:
        file.write(json.dumps(row))
    return folder


def review(diptych: Diptych, dataset: Path, *words: object) -> tuple[int, int]:
    """Return the exit status and the number of requests."""
    script = Script(answers("first"), listings=listings(TASK, "detections", "first"))
    common = ("--out", dataset.with_name("out"), "--concurrency", 1)
    return diptych(script, "review", dataset, *common, *words), len(script.received)


def rows_of(path: Path) -> list[Any]:
    return list(map(json.loads, path.read_text().splitlines()))


def test_the_worst_labels_are_first(diptych: Diptych, dataset: Path, capsys: Captured) -> None:
    out = dataset.with_name("out")
    out.mkdir()
    (out / "review.json").write_text("mine")
    assert review(diptych, dataset, "--task", TASK) == (1, 0)
    (out / "review.json").unlink()
    assert review(diptych, dataset, "--task", TASK) == (0, 3)
    worst, second, last = rows_of(out / "ranking.jsonl")
    assert worst["image"] == "c.png"
    assert (second["image"], second["suspicion"]) == ("a.png", 0.6)
    assert second["kinds"] == ["other class"]
    (label,) = second["labels"]
    assert (label["kind"], label["label"]["label"], label["model"]) == (
        "other class",
        "dog",
        "first",
    )
    assert label["suggested"] == {"box": [50.0, 20.0, 90.0, 60.0], "label": "car", "score": 0.6}
    assert (last["kinds"], last["labels"]) == (["unfamiliar"], [])  # no dog is ever found
    report = json.loads((out / "report.json").read_text())
    gallery = [(row["sample"], row["error"], row["kinds"]) for row in report["gallery"]]
    assert gallery == [
        ("c.png", 0.8, ["missing"]),
        ("a.png", 0.6, ["other class"]),
        ("b.png", 0.0, ["unfamiliar"]),
    ]
    output = capsys.readouterr()
    assert str(out / "report.html") in output.out
    assert "what to review: ranking.jsonl, review.json, label_studio.json in " in output.err
    assert review(diptych, dataset, "--task", TASK, "--gallery", 1) == (0, 0)  # resumes
    assert len(rows_of(out / "ranking.jsonl")) == 3
    assert len(json.loads((out / "label_studio.json").read_text())) == 1


def test_a_person_accepts_suggestions(diptych: Diptych, dataset: Path, capsys: Captured) -> None:
    """The labels and the suggestions are in both files; what a person exports is merged."""
    review(diptych, dataset, "--task", TASK)
    out = dataset.with_name("out")
    given = (dataset / "labels.jsonl").read_bytes()
    coco = json.loads((out / "review.json").read_text())
    names = {row["id"]: row["name"] for row in coco["categories"]}
    labels = [names[row["category_id"]] for row in coco["annotations"]]
    assert labels == ["suggested: dog", "car", "dog", "suggested: car"]
    untouched = ("--merge", out / "review.json")
    assert review(diptych, dataset, *untouched) == (0, 0)
    merged = rows_of(out / "merged.jsonl")
    assert [len(row["objects"]) for row in merged] == [2, 1, 1]
    tasks = json.loads((out / "label_studio.json").read_text())
    assert [row["model_version"] for row in tasks[0]["predictions"]] == ["labels", "first"]
    tasks[0]["annotations"] = [{"result": tasks[0]["predictions"][1]["result"]}]
    tasks[1]["annotations"] = []  # not reviewed
    export = dataset.with_name("export.json")
    export.write_text(json.dumps(tasks))
    capsys.readouterr()
    assert review(diptych, dataset, "--merge", export, "--json") == (0, 0)
    summary = {"merged": str(out / "merged.jsonl"), "images": 3, "changed": 1}
    assert json.loads(capsys.readouterr().out) == summary
    merged, before = rows_of(out / "merged.jsonl"), merged
    assert merged[:2] == before[:2]
    crowd, accepted = merged[2]["objects"]
    assert crowd == CROWD
    assert accepted.pop("box") == pytest.approx([5, 5, 25, 25])
    assert accepted == {"label": "dog", "iscrowd": False}
    assert (dataset / "labels.jsonl").read_bytes() == given
    export.write_text(json.dumps(coco | {"annotations": []}))  # of images that nobody annotated
    capsys.readouterr()
    assert review(diptych, dataset, "--merge", export) == (0, 0)
    assert "merged.jsonl; 1 of them have no labels any more" in capsys.readouterr().out
    for row in coco["images"]:
        row["file_name"] = f"other-{row['file_name']}"
    export.write_text(json.dumps(coco))
    assert review(diptych, dataset, "--merge", export)[0] == 1
    reason = "it names 'other-c.png', the dataset 'a.png'"
    assert f"export.json has no image of the dataset: {reason}" in capsys.readouterr().err
    export.write_text(json.dumps(tasks))
    (out / "merged.jsonl").write_text("edited")
    assert review(diptych, dataset, "--merge", export)[0] == 1
    assert (out / "merged.jsonl").read_text() == "edited"


def test_review_needs_objects(diptych: Diptych, dataset: Path, capsys: Captured) -> None:
    (dataset / "labels.jsonl").unlink()
    assert review(diptych, dataset, "--task", TASK) == (1, 0)
    assert "review needs labelled objects; object_detection on images" in capsys.readouterr().err
