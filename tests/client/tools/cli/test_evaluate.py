"""`diptych evaluate` and `review` over a scripted service: files, labels, and what is refused."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from diptych_client import Answer, Detection, DetectionsResult
from tests.client.tools.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import DETECTIONS, SIZE, answer
from tests.support.evaluations import OBJECTS, detection, write_json_lines
from tests.support.scripted_services import Received, Script, Step

TASK = "object_detection"
NAMES = ("first", "second")
STAR = {"label": "star", "box": DETECTIONS.detections[0].box_xyxy}
BOTH = [answer(DETECTIONS, model=name) for name in sorted(NAMES * 3)]  # to three images


@pytest.fixture
def out(folder: Path) -> Path:
    return folder.with_name("out")


def write_labels(folder: Path, names: Sequence[str]) -> None:
    rows = [json.dumps({"image": name, "objects": [STAR]}) for name in names]
    (folder / "labels.jsonl").write_text("\n".join(rows))


def evaluate(
    diptych: Diptych,
    folder: Path,
    *words: object,
    models: Sequence[str] = NAMES,
    answers: Sequence[Answer] = (),
    script: Script | None = None,
    task: str = TASK,
) -> tuple[int, list[Received]]:
    """Return the exit status and the requests."""
    script = script or Script(list(answers))
    script.listings = listings(task, "detections", *models)
    common = ("--out", folder.with_name("out"), "--concurrency", 1, "--gallery", 2)
    words = words if "--task" in words else ("--task", task, *words)
    return diptych(script, "evaluate", folder, *common, *words), script.received


def report_of(out: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((out / "report.json").read_text())
    return document


def test_report_has_every_model(
    diptych: Diptych, folder: Path, out: Path, capsys: Captured
) -> None:
    status, received = evaluate(diptych, folder, answers=BOTH)
    assert (status, len(received)) == (0, 6)
    assert report_of(out)["models"] == list(NAMES)
    assert "a.png" in (out / "report.html").read_text()
    assert capsys.readouterr().out.startswith("first and second: agreement 100.0 [")
    assert evaluate(diptych, folder) == (0, [])  # a finished run is not sent again


def test_report_names_run_and_failures(
    diptych: Diptych, folder: Path, out: Path, capsys: Captured
) -> None:
    (folder / "a.png").write_text("no image")
    assert evaluate(diptych, folder, answers=BOTH[1:5])[0] == 1
    assert "; 2 requests failed, see " in capsys.readouterr().out
    run = report_of(out)["run"]
    assert isinstance(run, dict)
    assert run["service"].startswith("http://127.0.0.1:")
    assert run["requests failed"] == "2"
    assert run["date"].startswith("20")
    assert run["first"].startswith("int8, checkpoint 000000000000")


class Reader(Script):
    """Finds the star for exact labels: model first places it well, second loosely."""

    def next_step(self, received: Received) -> Step:
        self.received.append(received)
        fields = dict(
            re.findall(r'name="(model|labels)"\r\n\r\n(.*)\r', received.body.decode("latin1"))
        )
        model = fields["model"]
        x1, y1, x2, y2 = DETECTIONS.detections[0].box_xyxy
        right = x2 if model == "first" else x2 + 4
        known = {"first": {"red star"}, "second": {"red star", "Star", "2"}}[model]
        detections = []
        for label in known.intersection(json.loads(fields["labels"])):
            detections.append(Detection((x1, y1, right, y2), label, 0.9))
        return answer(DetectionsResult(tuple(detections)), model=model)


def evaluate_label(
    diptych: Diptych, folder: Path, label: str, *words: object
) -> tuple[list[str], int]:
    """Evaluate two models on 23 images with one class; return sentences, number of requests."""
    names = [f"{number:02}.png" for number in range(23)]
    for name in names:
        if not (folder / name).exists():
            (folder / name).write_bytes((folder / "a.png").read_bytes())
    rows = [json.dumps({"image": name, "objects": [STAR | {"label": label}]}) for name in names]
    (folder / "labels.jsonl").write_text("\n".join(rows))
    task = "open_vocabulary_detection"
    status, received = evaluate(diptych, folder, *words, script=Reader([]), task=task)
    assert status == 0
    sentences = report_of(folder.with_name("out"))["sentences"]
    assert isinstance(sentences, list)
    return sentences[:-1], len(received)  # without the agreement


@pytest.mark.parametrize(
    ("label", "num_forms"),
    [("red star", 1), ("Red Star", 2), ("red stars", 2), ("red_star", 2), ("Red_Stars", 4)],
)
def test_form_of_names_leaves_verdict(
    diptych: Diptych, folder: Path, out: Path, label: str, num_forms: int, capsys: Captured
) -> None:
    sentences, num_requests = evaluate_label(diptych, folder, label)
    assert sentences == [
        "first: 100.0 [100.0, 100.0] mAP.",
        "second: 50.0 [50.0, 50.0] mAP.",
        "first is better by 50.0 mAP [50.0, 50.0].",
    ]
    assert num_requests == 2 * (23 + 20 * (num_forms - 1))
    notes = capsys.readouterr().err
    assert f"classes: {label} 23" in notes
    assert (f"first is asked {label} as red star" in notes) == (num_forms > 1)
    assert evaluate_label(diptych, folder, label) == (sentences, 0)  # the same choice
    for prompts in out.glob("prompts-*.yaml"):
        assert yaml.safe_load(prompts.read_text()) == {label: ["red star"]}
        assert evaluate_label(diptych, folder, label, "--prompts", prompts) == (sentences, 0)


def test_verdict_is_withheld(
    diptych: Diptych, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    none = "No verdict: first found none of the labelled objects."
    assert evaluate_label(diptych, folder, "Star")[0][1:] == [
        "second: 50.0 [50.0, 50.0] mAP.",
        none,
    ]
    assert "second is asked names as written" in capsys.readouterr().err
    sentences, _ = evaluate_label(diptych, folder, "2")
    assert sentences[-1].startswith("No verdict: the names of the classes are numbers, which --pr")
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("2: red star")
    sentences, _ = evaluate_label(diptych, folder, "2", "--prompts", prompts)
    assert sentences[-1].startswith("first is better by ")


def test_check_prints_the_plan_alone(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    evaluate_label(diptych, folder, "Red_Stars")
    capsys.readouterr()
    words = ("--task", "open_vocabulary_detection", "--url", "http://127.0.0.1:1")
    assert diptych(Script([]), "check", folder, *words) == 0
    output = capsys.readouterr().out
    plan = {"task": "open_vocabulary_detection", "labels": ["Red_Stars"]}
    assert yaml.safe_load(output) == plan
    lines = output.splitlines()
    assert lines[0].endswith(", 23 images")
    assert lines[1:-3] == [
        "# labels: objects 23",
        "# classes: Red_Stars 23",
        "# ignored: image without labels 3",
        "# open_vocabulary_detection: 23 requests to each model",
        "# asked with labels: Red_Stars",
        "# or: Red_Stars as red_stars",
        "# or: Red_Stars as red stars",
        "# or: Red_Stars as red star",
        "# up to 60 requests more to each model choose its names",
    ]
    write_labels(folder, ["a.png"] * 41)
    text = (folder / "labels.jsonl").read_text()
    for number in range(41):
        text = text.replace('"star"', f'"{number}"', 1)
    (folder / "labels.jsonl").write_text(text)
    assert diptych(Script([]), "check", folder) == 0
    *_, classes, _, numbers = capsys.readouterr().out.splitlines()
    assert classes.endswith(" 1, 1 others")
    assert numbers.startswith("# the classes are numbers: --prompts names them")
    assert diptych(Script([]), "check", folder, "--task", "detection") == 2
    assert "expected one of captioning, object_detection," in capsys.readouterr().err


def test_classes_that_no_model_tells_apart_count_as_one(
    diptych: Diptych, folder: Path, out: Path, capsys: Captured
) -> None:
    rows = []
    for name, label in (("a.png", "Star"), ("b.png", "star"), ("c.png", "Star  ")):
        rows.append(json.dumps({"image": name, "objects": [STAR | {"label": label}]}))
    (folder / "labels.jsonl").write_text("\n".join(rows))
    task = "open_vocabulary_detection"
    line = "counted as one class: Star   as Star, star as Star"
    assert diptych(Script([]), "check", folder, "--task", task) == 0
    output = capsys.readouterr().out
    assert line in output
    assert "asked with labels: Star\n" in output
    status, received = evaluate(diptych, folder, script=Reader([]), task=task)
    assert status == 0
    asked = re.findall(r'\["[Ss]tar[^]]*\]', str([request.body for request in received]))
    assert set(asked) == {'["Star"]', '["star"]'}
    assert line in capsys.readouterr().err
    assert "counted as one class" in (out / "report.json").read_text()


@pytest.mark.parametrize("named", ["folder", "labels", "file"])
def test_name_that_is_not_utf8_is_left_out(
    diptych: Diptych, folder: Path, named: str, capsys: Captured
) -> None:
    latin = os.fsdecode(b"latin\xe9.png")
    (folder / "a.png").rename(folder / latin)
    if named == "labels":
        write_labels(folder, [latin, "b.png", "c.png"])
    path: tuple[Path, ...] = (folder,)
    if named == "file":
        path = (folder / latin, folder / "b.png", folder / "c.png")
    status, received = evaluate(diptych, *path[:1], *path[1:], answers=BOTH)
    assert (status, len(received)) == (0, 4)
    errors = capsys.readouterr().err
    assert "latin\\udce9.png: its name is not text in UTF-8: rename it; image left out" in errors
    assert "1 x image left out" in errors


def test_sample_and_split_name_the_dataset(diptych: Diptych, folder: Path, out: Path) -> None:
    _, received = evaluate(diptych, folder, "--sample", 1, models=["first"], answers=BOTH[:1])
    assert len(received) == 1
    report = report_of(out)
    assert (report["num_images"], report["dataset"]) == (1, "images")


def test_labelled_model_has_metrics_by_class(
    diptych: Diptych, folder: Path, capsys: Captured
) -> None:
    write_labels(folder, ["a.png", "b.png"])
    evaluate(diptych, folder, models=["first"], answers=BOTH[:2])
    output = capsys.readouterr().out
    assert "mAP50" in output
    assert "star" in output
    assert "2 samples of 2 images answered by every model\n" in output


def test_calibration_is_written(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    write_labels(folder, ["a.png", "b.png", "c.png"])
    path = folder.with_name("c.json")
    star = DETECTIONS.detections[0]
    answers = []
    for box in (star, star, replace(star, score=None)):
        many = answer(DetectionsResult((box,) * 100), model="first")
        answers.append(replace(many, familiarity=0.001, image_embedding="AAAA"))
    words = ("--calibrate", path)
    status, received = evaluate(diptych, folder, *words, models=["first"], answers=answers)
    assert (status, [b'name="image_embedding"' in one.body for one in received]) == (0, [True] * 3)
    (row,) = json.loads(path.read_text())["calibrations"]
    assert (row["model"], row["num_answers"], row["with_tiles"]) == ("first", 200, False)
    assert row["images"] is None
    run = report_of(folder.with_name("out"))["run"]
    assert isinstance(run, dict)
    assert run["first: unlike its calibration"] == "3 of 3 samples"
    message = "first: 100 objects without a score are left out of the calibration"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--models", "none,first,other"), f"none, other does not offer {TASK}; offered by"),
        (("--task", "ocr"), f"no model offers task 'ocr'; offered are {TASK}"),
    ],
)
def test_models_and_tasks_that_do_not_fit_are_refused(
    diptych: Diptych,
    folder: Path,
    out: Path,
    words: tuple[str, ...],
    message: str,
    capsys: Captured,
) -> None:
    status, received = evaluate(diptych, folder, *words)
    assert (status, received) == (1, [])
    assert message in capsys.readouterr().err
    assert not out.exists()


A, B = OBJECTS["a.png"], OBJECTS["b.png"]
CROWD = {"label": "dog", "box": [70.0, 50.0, 90.0, 70.0], "iscrowd": True}
CAT = detection("cat", (0, 0, 9, 9))  # not a class of the dataset
# c.png lacks a label; a box of a.png is of another class; b.png is of another kind of image
FOUND = {
    "a.png": [detection("car", A[0][1]), detection("car", A[1][1], 0.6), CAT],
    "b.png": [],
    "c.png": [detection("dog", (5, 5, 25, 25), 0.8), CAT],
}


def answers_of(model: str) -> list[Step]:
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
    script = Script(answers_of("first"), listings=listings(TASK, "detections", "first"))
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
    reason = f"export.json: there is no image 'other-c.png' in {dataset}"
    assert reason in capsys.readouterr().err
    export.write_text(json.dumps(tasks))
    (out / "merged.jsonl").write_text("edited")
    assert review(diptych, dataset, "--merge", export)[0] == 1
    assert (out / "merged.jsonl").read_text() == "edited"


def test_review_says_what_it_needs(diptych: Diptych, dataset: Path, capsys: Captured) -> None:
    with (dataset / "labels.jsonl").open("a") as file:
        file.write('\n{"image": "z.png"}\n{}\n')
    export = dataset.with_name("export.jsonl")
    export.write_text('{"image": "other.png", "objects": []}')
    assert review(diptych, dataset, "--merge", export) == (1, 0)
    reason = f"error: no image is left: {export}: there is no image 'other.png' in {dataset}"
    assert reason in capsys.readouterr().err
    (dataset / "labels.jsonl").unlink()
    assert review(diptych, dataset, "--task", TASK) == (1, 0)
    assert "review needs labelled objects; object_detection on images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "result", "labels", "sent"),
    [
        ("object_detection", "detections", "car", []),
        ("open_vocabulary_detection", "detections", "car", [b'name="labels"\r\n\r\n["car"]']),
        ("instance_segmentation", "instances", "car", [b'name="phrase"\r\n\r\ncar']),
    ],
)
def test_labels_restrict_the_classes_that_count(
    diptych: Diptych, dataset: Path, task: str, result: str, labels: str, sent: list[bytes]
) -> None:
    script = Script([answer(DetectionsResult(()), model="first")] * 3)
    script.listings = listings(task, result, "first")
    out = dataset.with_name("out")
    words = ("--task", task, "--labels", labels, "--out", out)
    assert diptych(script, "evaluate", dataset, *words) == 0
    for received in script.received:
        found = re.findall(rb'name="(?:labels|phrases?)"\r\n\r\n[^\r]*', received.body)
        assert found == sent
    run = report_of(out)["run"]
    assert isinstance(run, dict)
    assert run["labels"] == labels
