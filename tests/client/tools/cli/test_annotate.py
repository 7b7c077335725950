"""Runs of `diptych annotate`: notes, consensus, what labelled images prove, and what is refused."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych_client import Answer, Detection, DetectionsResult
from diptych_client.datasets.formats.reading import read_dataset
from tasks.scores import read_proofs
from tests.client.tools.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import DETECTIONS, answer
from tests.support.scene_images import encoded
from tests.support.scripted_services import Received, Refusal, Script

BOXES = "detections"
LABELLED = ("--labelled", "x")


def annotate(
    diptych: Diptych,
    folder: Path,
    *words: object,
    models: tuple[str, ...] = ("a",),
    result: str = BOXES,
    script: Script | None = None,
) -> int:
    script = script or Script([answer(DETECTIONS)] * 6)
    script.listings = listings("t", result, *models)
    return diptych(script, "annotate", folder, "--task", "t", *words)


def test_quiet_prints_results_alone(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    for option, is_noted in (("--quiet", False), ("--overwrite", True)):
        out = folder.with_name(f"out{option}")
        assert annotate(diptych, folder, "--json", option, "--out", out) == 0
        printed = capsys.readouterr()
        counts = {"images": 3, "labelled": 3, "failed": 0, "left_out": {}}
        assert json.loads(printed.out) == {"dataset": f"{out}/annotations.json", **counts}
        assert bool(printed.err) == is_noted


def test_failures_are_counted_and_retried(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    script = Script([answer(DETECTIONS), Refusal("overloaded"), answer(DETECTIONS)])
    words = ("--concurrency", "1", "--max-retries", "0")
    assert annotate(diptych, folder, *words, script=script) == 1
    printed = capsys.readouterr().out
    assert f"2 of 3 images have answers; see {folder}-annotations/annotations.json" in printed
    assert "1 requests failed, see " in printed
    script = Script([answer(DETECTIONS)])
    assert annotate(diptych, folder, *words, script=script) == 0
    assert len(script.received) == 1
    assert "3 of 3 images have answers; see " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "name", "is_refused"),
    [
        ("coco", b"latin\xe9.png", True),
        ("jsonl", b"latin\xe9.png", True),
        ("yolo", b"x" * 241 + b".png", True),
        ("voc", b"x" * 241 + b".png", True),
        ("labelme", b"x" * 241 + b".png", True),
        ("csv", b"x" * 250 + b".bmp", True),  # converted to a name with .png
        ("csv", b"x" * 251 + b".png", False),
        ("coco", b"x" * 251 + b".png", False),
        ("yolo", b"x" * 240 + b".png", False),
        ("labelme", b"x" * 240 + b".png", False),
    ],
)
def test_name_that_cannot_be_written_is_left_out_first(
    diptych: Diptych, folder: Path, form: str, name: bytes, is_refused: bool, capsys: Captured
) -> None:
    (folder / os.fsdecode(name)).write_bytes((folder / "a.png").read_bytes())
    script = Script([answer(DETECTIONS)] * 4)
    assert annotate(diptych, folder, "--format", form, "--json", script=script) == 0
    printed = capsys.readouterr()
    counts = json.loads(printed.out)
    assert counts["left_out"] == ({"image left out": 1} if is_refused else {})
    assert counts["labelled"] == len(script.received) == 4 - is_refused
    assert (os.fsdecode(name).encode(errors="backslashreplace").decode() in printed.err) == (
        is_refused
    )
    strict = ("--format", form, "--strict", "--out", folder.with_name("strict"))
    assert annotate(diptych, folder, *strict) == is_refused
    if is_refused:
        assert "rename it" in capsys.readouterr().err


def test_consensus_has_both_models(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    words = ("--consensus", "--out", folder.with_name("out"))
    assert annotate(diptych, folder, *words, models=("a", "b", "c")) == 0
    assert (folder.with_name("out") / "review.json").is_file()
    printed = capsys.readouterr().out
    assert "0 images are to be reviewed, see " in printed
    assert " labels have two models' consent, which proves nothing: both may err alike" in printed
    script = Script([*[answer(DETECTIONS)] * 3, Refusal("overloaded"), *[answer(DETECTIONS)] * 2])
    cut = ("--consensus", "--out", folder.with_name("cut"), "--max-retries", 0)
    assert annotate(diptych, folder, *cut, models=("a", "b"), script=script) == 1
    assert "2 of 3 images have answers; see " in capsys.readouterr().out


def test_missing_extra_is_named(
    diptych: Diptych, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "diptych_client.tools.cli.guaranteed", None)
    assert annotate(diptych, folder, "--labelled", folder / "labels.jsonl") == 1
    assert "docs/client.md lists the extras" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "result", "message"),
    [
        ((), "text", "but the task's result is text: use --format csv or"),
        ((*LABELLED, "--format", "jsonl"), BOXES, "and --format is jsonl"),
        ((*LABELLED, "--thresholds", "y", "--per-class"), BOXES, "omit --per-class"),
        (("--per-class",), BOXES, "--thresholds and --split need --labelled"),
        (("--consensus",), BOXES, "--model must name two models with --consensus, else one"),
        (("--max-wrong", ".1"), BOXES, "--thresholds and --split need --labelled"),
        ((*LABELLED, "accept_score: 0.1"), BOXES, "omit accept_score and"),
        ((*LABELLED, "min_precision: 0.9"), BOXES, "omit accept_score and"),
        ((*LABELLED, "--thresholds", "y", "--consensus"), BOXES, "omit --consensus"),
        (("--out", "images/out"), BOXES, "must be outside the image folder images"),
        (("--out", "."), BOXES, "must be outside the image folder images"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    diptych: Diptych,
    folder: Path,
    words: tuple[str, ...],
    result: str,
    message: str,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    script = Script([])
    plan = folder.parent.with_name(f"{folder.parent.name}.yaml")
    plan.write_text("\n".join(word for word in words if ": " in word))
    options = [word for word in words if ": " not in word]
    options += ["--config", str(plan)]
    assert annotate(diptych, Path("images"), *options, result=result, script=script) == 1
    assert message in capsys.readouterr().err
    assert script.received == []
    assert [path.name for path in folder.parent.iterdir()] == ["images"]


def test_file_of_options(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    plan = folder.with_name("plan.yaml")
    plan.write_text(
        "task: u\nlabels: [x, y]\nnum-beams: 3\nregion: [1, 2, 3, 4.5]\niou: 1\nformat: yolo\n"
    )
    script = Script([answer(DETECTIONS)] * 3)
    assert annotate(diptych, folder, "--config", plan, "--labels", "z", script=script) == 0
    for received in script.received:
        body = received.body.decode("latin1")
        for field, value in (("task", "t"), ("labels", '["z"]'), ("num_beams", "3")):
            assert f'name="{field}"\r\n\r\n{value}\r' in body
        assert "[1.0, 2.0, 3.0, 4.5]" in body
    assert capsys.readouterr().out.rstrip().endswith("dataset.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "has colour; expected any of accept_score, caption, concurrency"),
        ("num_beams: three", "num_beams must be of type int, got 'three'"),
        ("num_beams: true", "num_beams must be of type int, got True"),
        ("iou: 2", "iou must be 0 to 1, got 2.0"),
        ("region: [1, 2]", "region must be [x1, y1, x2, y2], got [1, 2]"),
        ("concurrency: 0", "greater than or equal to 1"),
        ("[1", "is not readable as YAML"),
        ("- 1", "must have lines like `num_beams: 3`"),
    ],
)
def test_bad_file_of_options_is_wrong_usage(
    diptych: Diptych, folder: Path, text: str, message: str, capsys: Captured
) -> None:
    plan = folder.with_name("plan.yaml")
    plan.write_text(text)
    script = Script([])
    assert annotate(diptych, folder, "--config", plan, script=script) == 2
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in printed
    assert script.received == []


PIXELS = encoded(Image.new("RGB", (16, 16)))
CAR = (0.0, 0.0, 10.0, 10.0)
SCORES = {b"sure": 0.9, b"unsure": 0.3}
FAR = (12.0, 12.0, 16.0, 16.0)
TRUE_CAR = {"objects": [{"label": "car", "box": CAR}]}
TRUE_DOG = {"objects": [{"label": "dog", "box": CAR}]}
TRUTHS: Mapping[str, object] = {"sure": TRUE_CAR, "unsure": TRUE_DOG}
MANY = ["sure"] * 60 + ["unsure"] * 15


@dataclass(slots=True)
class MarkedScript(Script):
    """Finds a car with a score and a familiarity that a mark in the image's bytes decides."""

    def next_step(self, received: Received) -> Answer:
        """Record a request and return the answer."""
        self.received.append(received)
        score = SCORES[b"unsure" if b"unsure" in received.body else b"sure"]
        familiarity = 0.001 if b"unlike" in received.body else 0.5
        boxes = (Detection(CAR, "car", score),)
        return replace(answer(DetectionsResult(boxes)), familiarity=familiarity)


class TwoClasses(MarkedScript):
    """Finds a car, and a dog that is a cat."""

    def next_step(self, received: Received) -> Answer:
        self.received.append(received)
        return answer(DetectionsResult((Detection(CAR, "car", 0.9), Detection(FAR, "dog", 0.9))))


def write_images(folder: Path, kinds: Sequence[str]) -> Path:
    folder.mkdir()
    for number, kind in enumerate(kinds):
        (folder / f"{number}.jpg").write_bytes(PIXELS + f"{kind} {number}".encode())
    return folder


def write_labels(folder: Path, kinds: Sequence[str], truths: Mapping[str, object] = TRUTHS) -> Path:
    """Write images with the true labels of their kinds."""
    labels = {f"{number}.jpg": truths[kind] for number, kind in enumerate(kinds)}
    return write_lines(write_images(folder, kinds) / "labels.jsonl", labels)


def write_lines(path: Path, truths: Mapping[str, object]) -> Path:
    rows = [json.dumps({"image": name} | truth) for name, truth in truths.items()]  # type: ignore[operator]
    path.write_text("\n".join(rows))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", ["sure", "unsure", "sure", "unsure"])


def annotate_labelled(
    diptych: Diptych,
    photos: Path,
    labels: Path,
    *words: object,
    script: Script | None = None,
) -> tuple[int, int]:
    """Write a folder `out` beside the photos; return the status and the number of requests."""
    script = script or MarkedScript([])
    script.listings = listings("object_detection", "detections", "first")
    out = ("--out", photos.with_name("out"), "--confidence", 0.9, "--max-wrong", 0.1)
    command = ("annotate", photos, "--task", "object_detection", "--labelled", labels, *out)
    return diptych(script, *command, *words), len(script.received)


def annotations(path: Path) -> list[tuple[str, float]]:
    document = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    return [(names[row["image_id"]], row["score"]) for row in document["annotations"]]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_proved_labels_are_accepted(
    diptych: Diptych, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    labels = write_labels(tmp_path / "labelled", MANY)
    assert annotate_labelled(diptych, photos, labels) == (0, 75 + 4)
    out = tmp_path / "out"
    assert annotations(out / "annotations.json") == [("0.jpg", 0.9), ("2.jpg", 0.9)]
    assert annotations(out / "review.json") == [("1.jpg", 0.3), ("3.jpg", 0.3)]
    assert len(lines_of(out / "labelled" / "journal.jsonl")) == 75  # names may be those of photos
    accepting = json.loads((out / "guarantee.json").read_text())["accepting"]
    assert accepting["rule"] == {"min_confidence": 0.9, "max_labels": 1}
    figures = (accepting["share"], accepting["coverage"], accepting["num_images"])
    assert figures == (0, 0.8, 75)
    output = capsys.readouterr().out
    assert "at most 10 % of the accepted labels are wrong, with 90 % confidence" in output
    assert f"2 images are to be reviewed, see {out / 'review.json'}" in output
    script = MarkedScript([], listings=listings("object_detection", "detections", "first"))
    assert diptych(script, "annotate", photos, "--task", "object_detection", "--out", out) == 0
    assert not (out / "guarantee.json").exists()  # of the labels that were there


def test_labelled_may_be_a_split_of_an_archive(
    diptych: Diptych, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "data").mkdir()
    for split, kinds in (("train", ["unsure"]), ("val", MANY)):
        labels = write_labels(tmp_path / "data" / split, kinds)
        labels.write_text(labels.read_text() + "\n{}")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data"))
    assert annotate_labelled(diptych, photos, archive, "--split", "valid") == (0, 75 + 4)
    assert "1 x line left out" in capsys.readouterr().err
    assert annotate_labelled(diptych, photos, archive, "--split", "test")[0] == 1
    assert "no label file of the split test; its splits: train, val" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "truths", "message"),
    [
        (["sure"] * 5, TRUTHS, "5 labelled images prove no threshold: 0 % of all labels are wrong"),
        (MANY, dict.fromkeys(TRUTHS, TRUE_DOG), "100 % of all labels are wrong"),
        (["sure"] * 60, {"sure": {"text": "EXIT"}}, "has no true labels for object_det"),
    ],
)
def test_labels_that_prove_nothing_are_refused(
    diptych: Diptych,
    photos: Path,
    tmp_path: Path,
    kinds: list[str],
    truths: Mapping[str, object],
    message: str,
    capsys: Captured,
) -> None:
    labels = write_labels(tmp_path / "labelled", kinds, truths)
    assert annotate_labelled(diptych, photos, labels)[0] == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "annotations.json").exists()


def test_unlike_images_are_reviewed(diptych: Diptych, tmp_path: Path, capsys: Captured) -> None:
    photos = write_images(tmp_path / "photos", ["sure", "sure", "sure unlike", "sure"])
    labels = write_labels(tmp_path / "labelled", MANY)
    assert annotate_labelled(diptych, photos, labels)[0] == 0
    out = tmp_path / "out"
    names = [name for name, _ in annotations(out / "annotations.json")]
    assert names == ["0.jpg", "1.jpg", "3.jpg"]
    assert annotations(out / "review.json") == [("2.jpg", 0.9)]
    assert json.loads((out / "guarantee.json").read_text())["share_unlike"] == 0.25
    assert (
        "; 1 of them are unlike those that the models were calibrated on" in capsys.readouterr().out
    )


def test_order_of_bets_is_kept(diptych: Diptych, photos: Path, tmp_path: Path) -> None:
    """Images that are added later come later, whatever their digests."""
    labels = write_labels(tmp_path / "labelled", MANY)
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:40]))
    annotate_labelled(diptych, photos, labels, "--format", "csv")
    order = json.loads((tmp_path / "out" / "order.json").read_text())
    assert order == sorted(order)
    labels.write_text("\n".join(lines))
    annotate_labelled(diptych, photos, labels, "--format", "csv")
    assert read_dataset(tmp_path / "out").format == "CSV"  # the lists are no labels
    later = json.loads((tmp_path / "out" / "order.json").read_text())
    assert (len(order), len(later), later[:40]) == (40, 75, order)
    assert later[40:] == sorted(later[40:])


def test_each_class_is_proved(diptych: Diptych, tmp_path: Path, capsys: Captured) -> None:
    photos = write_images(tmp_path / "photos", ["sure"] * 4)
    truths = {"sure": {"objects": [*TRUE_CAR["objects"], {"label": "cat", "box": FAR}]}}
    labels = write_labels(tmp_path / "labelled", ["sure"] * 60, truths)
    assert annotate_labelled(diptych, photos, labels, "--per-class", script=TwoClasses([]))[0] == 0
    document = json.loads((tmp_path / "out" / "guarantee.json").read_text())
    assert list(document["accepting"]) == ["car"]
    assert document["accepting"]["car"]["promise"] == {"max_share": 0.1, "confidence": 0.9}
    assert (document["by_class"], document["unproved"]) == ({"car": [0, 60]}, ["dog"])
    review = json.loads((tmp_path / "out" / "review.json").read_text())
    assert [category["name"] for category in review["categories"]] == ["dog"]
    output = capsys.readouterr().out
    assert "at most 10 % of the accepted labels of car are wrong" in output
    assert "nothing is accepted of dog: not proved" in output
    assert "wrong on the labelled images, by class: car 0 % of 60" in output


@pytest.mark.parametrize("text", ["[[]]", "null", '{"image": "a", "is_random": 1}', "[" * 100_000])
@pytest.mark.parametrize("name", ["pilot.json", "order.json"])
def test_malformed_file_of_earlier_run(
    name: str, text: str, diptych: Diptych, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(text)
    labels = write_labels(tmp_path / "labelled", MANY)
    assert annotate_labelled(diptych, photos, labels, "--overwrite")[0] == 1
    assert f"error: {tmp_path / 'out' / name}" in capsys.readouterr().err


def test_pilot_and_other_images_prove_nothing(
    diptych: Diptych, photos: Path, tmp_path: Path, capsys: Captured
) -> None:
    labels = write_labels(tmp_path / "labelled", ["sure"] * 5)
    annotate_labelled(diptych, photos, labels)
    piloted = write_lines(photos / "labels.jsonl", {f"{n}.jpg": TRUE_CAR for n in range(4)})
    annotate_labelled(diptych, photos, piloted)
    assert "no labelled image is left" in capsys.readouterr().err
    every = write_labels(tmp_path / "all", ["sure"] * 60)
    annotate_labelled(diptych, every.parent, every, "--out", tmp_path / "out2")
    assert "all 60 images are labelled already" in capsys.readouterr().err


def test_proofs_are_written_for_the_service(diptych: Diptych, photos: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labelled", MANY)
    path = tmp_path / "proofs.json"
    assert annotate_labelled(diptych, photos, labels, "--thresholds", path)[0] == 0
    proofs = read_proofs(path)
    assert [proof.min_precision for proof in proofs] == [0.8, 0.9]
    figures = {(proof.min_score, proof.max_labels, proof.num_images) for proof in proofs}
    assert figures == {(0.89995, 1, 75)}  # the lowest score that leaves the service as 0.9
    (first, _) = proofs
    assert (first.model, first.checkpoint, first.precision) == ("first", "0" * 64, "int8")
    assert (first.calibration, first.fields) == ("key", {"task": "object_detection"})
