"""`diptych evaluate` and `reports` over a scripted service: files, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from diptych_client import Answer, DetectionsResult
from tests.client.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import DETECTIONS, answer
from tests.support.scripted_services import Received, Script

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
) -> tuple[int, list[Received]]:
    """Return the exit status and the requests."""
    script = script or Script(list(answers))
    script.listings = listings(TASK, "detections", *models)
    common = ("--out", folder.with_name("out"), "--concurrency", 1, "--gallery", 2)
    words = words if "--task" in words else ("--task", TASK, *words)
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


def test_tiles_are_compared_with_none(diptych: Diptych, folder: Path, out: Path) -> None:
    words = ("--without-tiles", "--tiles", "auto")
    answers = [answer(DETECTIONS, model="first")] * 6
    _, received = evaluate(diptych, folder, *words, models=["first"], answers=answers)
    assert [b'name="tiles"' in one.body for one in received] == [True] * 3 + [False] * 3
    assert report_of(out)["models"] == ["first", "first without tiles"]
    assert evaluate(diptych, folder, "--without-tiles", models=["first"]) == (1, [])


def test_race_ends_when_a_model_is_better(
    diptych: Diptych, folder: Path, out: Path, capsys: Captured
) -> None:
    names = [f"{number}.png" for number in range(30)]
    for name in names:
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    write_labels(folder, names)
    right, wrong = (answer(DetectionsResult(DETECTIONS.detections[i : i + 1])) for i in (0, 1))
    words = ("--until-decided", "--json")
    _, received = evaluate(diptych, folder, *words, answers=[right, wrong] * 40)
    assert len(received) < 2 * 30
    verdict = f"first is better: decided after {len(received) // 2} images"
    document = json.loads(capsys.readouterr().out)
    assert document["decided"].startswith(verdict)
    assert document["report"] == str(out / "report.html")
    assert evaluate(diptych, folder, "--until-decided", models=["first"])[0] == 1
    assert "compares two models; given are first" in capsys.readouterr().err


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


def test_sample_and_split_name_the_dataset(diptych: Diptych, folder: Path, out: Path) -> None:
    _, received = evaluate(diptych, folder, "--sample", 1, models=["first"], answers=BOTH[:1])
    assert len(received) == 1
    report = report_of(out)
    assert (report["num_images"], report["dataset"]) == (1, "images")


def test_index_has_a_row_for_each_report(
    diptych: Diptych, folder: Path, out: Path, capsys: Captured
) -> None:
    evaluate(diptych, folder, answers=BOTH)
    capsys.readouterr()
    index = folder.with_name("index.html")
    assert diptych(Script([]), "reports", out, "--out", index, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["images"]) == (f"{TASK} on images", 3)
    assert row["conclusion"] == "first and second: agreement 100.0 [100.0, 100.0] %."
    page = index.read_text()
    assert 'href="out/report.html"' in page
    assert "agreement" in page
    (folder / "x.json").write_text("{}")
    for path in (folder, folder / "x.json"):
        assert diptych(Script([]), "reports", path, "--out", index) == 1
        assert "is not a report of `evaluate`" in capsys.readouterr().err


def test_labelled_model_has_metrics_by_class(
    diptych: Diptych, folder: Path, capsys: Captured
) -> None:
    write_labels(folder, ["a.png", "b.png"])
    evaluate(diptych, folder, models=["first"], answers=BOTH[:2])
    output = capsys.readouterr().out
    assert "mAP50" in output
    assert "star" in output
    assert "2 samples of 2 images answered by every model\n" in output


def test_calibration_is_written(diptych: Diptych, folder: Path) -> None:
    write_labels(folder, ["a.png", "b.png"])
    path = folder.with_name("c.json")
    many = DetectionsResult(DETECTIONS.detections[:1] * 100)
    answers = [answer(many, model="first")] * 2
    words = ("--calibrate", path)
    assert evaluate(diptych, folder, *words, models=["first"], answers=answers)[0] == 0
    (row,) = json.loads(path.read_text())["calibrations"]
    assert (row["model"], row["num_answers"], row["with_tiles"]) == ("first", 200, False)


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
