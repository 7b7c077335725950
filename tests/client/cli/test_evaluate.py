"""`diptych evaluate` over a scripted service: files, and what is refused."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from diptych_client import Answer, Detection, DetectionsResult
from tests.client.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import DETECTIONS, answer
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
    output = capsys.readouterr().out.splitlines()
    assert output[0].endswith(", 23 images")
    assert output[1:] == [
        "labels: objects 23",
        "classes: Red_Stars 23",
        "ignored: image without labels 3",
        "open_vocabulary_detection: 23 requests to each model",
        "asked with labels: Red_Stars",
        "or: Red_Stars as red_stars",
        "or: Red_Stars as red stars",
        "or: Red_Stars as red star",
        "up to 60 requests more to each model choose its names",
    ]
    write_labels(folder, ["a.png"] * 41)
    text = (folder / "labels.jsonl").read_text()
    for number in range(41):
        text = text.replace('"star"', f'"{number}"', 1)
    (folder / "labels.jsonl").write_text(text)
    assert diptych(Script([]), "check", folder) == 0
    *_, classes, _, numbers = capsys.readouterr().out.splitlines()
    assert classes.endswith(" 1, 1 others")
    assert numbers.startswith("the classes are numbers: --prompts names them")
    assert diptych(Script([]), "check", folder, "--task", "detection") == 2
    assert "expected one of captioning, object_detection," in capsys.readouterr().err


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
