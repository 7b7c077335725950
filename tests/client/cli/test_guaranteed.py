"""`diptych annotate --labelled` over a scripted service: what is accepted, and what is refused."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych_client import Answer, Detection, DetectionsResult, TextRegionsResult, TextResult
from diptych_client.cli.annotate import annotate_images
from diptych_client.cli.options import (
    AnnotateOptions,
    ConnectionOptions,
    GuaranteeOptions,
    InputOptions,
    TaskOptions,
)
from diptych_client.evaluation.annotation.consensus import text_of
from diptych_client.evaluation.formats.writing import DatasetFormat
from diptych_client.evaluation.job import Record
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import RunError
from diptych_client.results import Result
from diptych_client.transports.rest_messages import answer_from_json
from tasks.scores import read_proofs
from tests.support.client_answers import TEXT_REGIONS, answer
from tests.support.scene_images import encoded
from tests.support.scripted_services import Received, Script, serving_rest

MODEL: dict[str, object] = {
    "id": "a",
    "family": "",
    "organization": "",
    "category": "",
    "modality": "",
    "release_date": "",
    "context_window": 1,
    "parameters": 1,
    "license": "",
    "tasks": ["object_detection"],
    "features": [],
    "resolution": 1,
    "precision": "int8",
    "checkpoint": "sha",
    "calibrated_tasks": [],
    "calibration": "key",
}
ANY_FILE = ImageFile("any.jpg", 1, 1)
PIXELS = encoded(Image.new("RGB", (16, 16)))
CAR = [0.0, 0.0, 10.0, 10.0]
SCORES = {b"sure": 0.9, b"unsure": 0.3}
KINDS = ("sure", "unsure", "sure", "unsure")
RESULT_KINDS = {
    "object_detection": "detections",
    "ocr": "text",
    "ocr_with_regions": "text_regions",
}


@dataclass(slots=True)
class MarkedScript(Script):
    """Finds a car with a score that a mark in the image's bytes decides, or reads a text."""

    result: Result | None = None

    def next_step(self, received: Received) -> Answer:
        """Record a request and return the answer."""
        self.received.append(received)
        score = SCORES[b"unsure" if b"unsure" in received.body else b"sure"]
        return replace(answer(self.result or self.found(score)), task="ocr")

    def found(self, score: float) -> Result:
        return DetectionsResult((Detection((0.0, 0.0, 10.0, 10.0), "car", score),))


class ReadingScript(MarkedScript):
    """Finds a word with a score that a mark in the image's bytes decides, and a sure one."""

    def found(self, score: float) -> Result:
        (region,) = TEXT_REGIONS.text_regions
        regions = (replace(region, text="EXIT", score=score), replace(region, score=0.9))
        return TextRegionsResult(regions)


def write_image(folder: Path, name: str, kind: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(PIXELS + kind.encode())


def labelled(folder: Path, kinds: list[str], true: dict[str, dict[str, object]]) -> Path:
    """Write images with the true labels of their kinds."""
    rows = []
    for number, kind in enumerate(kinds):
        write_image(folder, f"{number}.jpg", kind)
        rows.append(json.dumps({"image": f"{number}.jpg", **true[kind]}) + "\n")
    (folder / "labels.jsonl").write_text("".join(rows))
    return folder / "labels.jsonl"


TRUE_CAR: dict[str, object] = {"objects": [{"label": "car", "box": CAR}]}
TRUE_DOG: dict[str, object] = {"objects": [{"label": "dog", "box": CAR}]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, kind in enumerate(KINDS):
        write_image(tmp_path / "photos", f"{number}.jpg", kind)
    return tmp_path / "photos"


def annotate(
    photos: Path,
    labels: Path | None,
    script: Script,
    task: str = "object_detection",
    dataset_format: DatasetFormat = DatasetFormat.coco,
    accept_score: float = 0.0,
    **given: Any,
) -> Path:
    """Run the command and return its output folder."""
    out = photos.with_name("out")
    result = RESULT_KINDS[task]
    row = {"id": task, "description": "", "result": result, "parameters": {}, "models": ["a"]}
    script.listings = {"/v1/tasks": [row], "/v1/models": [MODEL]}
    with serving_rest(script) as url:
        annotate_images(
            ConnectionOptions(url, None, 5.0, 0),
            [str(photos)],
            AnnotateOptions(accept_score=accept_score, dataset_format=dataset_format, out=out),
            InputOptions(),
            TaskOptions(task),
            GuaranteeOptions(labels, confidence=0.9, **given),
        )
    return out


def annotations(path: Path) -> list[tuple[str, float]]:
    document = json.loads(path.read_text())
    names = {each["id"]: each["file_name"] for each in document["images"]}
    return [(names[each["image_id"]], each["score"]) for each in document["annotations"]]


def test_proved_labels_are_accepted_and_the_others_reviewed(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = {"sure": TRUE_CAR, "unsure": TRUE_DOG}
    labels = labelled(tmp_path / "labelled", ["sure"] * 60 + ["unsure"] * 15, true)
    script = MarkedScript([])
    out = annotate(photos, labels, script, max_wrong=0.1)
    assert annotations(out / "annotations.json") == [("0.jpg", 0.9), ("2.jpg", 0.9)]
    assert annotations(out / "review.json") == [("1.jpg", 0.3), ("3.jpg", 0.3)]
    assert len(script.received) == 75 + len(KINDS)
    proved = json.loads((out / "guarantee.json").read_text())["accepting"]
    assert proved["rule"] == {"min_confidence": 0.9, "max_labels": 1}
    assert (proved["share"], proved["coverage"], proved["num_images"]) == (0, 0.8, 75)
    said = "at most 10 % of the accepted labels are wrong, with 90 % confidence"
    assert said in capsys.readouterr().out


def test_the_review_list_leaves_out_what_few_objects_need(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(12):
        write_image(photos, f"{number}.jpg", "sure" if number else "unsure")
    true = {"sure": TRUE_CAR, "unsure": TRUE_DOG}
    labels = labelled(tmp_path / "labelled", ["sure"] * 70 + ["unsure"] * 5, true)
    out = annotate(photos, labels, MarkedScript([]), max_wrong=0.1, max_missed=0.3)
    assert annotations(out / "review.json") == []


def test_too_few_labelled_images_are_refused_before_a_request(photos: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 5, {"sure": TRUE_CAR})
    script = MarkedScript([])
    with pytest.raises(RunError, match="with 5 labelled images no threshold can be proved"):
        annotate(photos, labels, script)
    assert script.received == []


def test_labels_that_are_too_often_wrong_are_not_written(photos: Path, tmp_path: Path) -> None:
    true = {"sure": TRUE_DOG, "unsure": TRUE_DOG}
    labels = labelled(tmp_path / "labelled", ["sure", "unsure"] * 30, true)
    with pytest.raises(RunError, match="100 % of all labels are wrong"):
        annotate(photos, labels, MarkedScript([]))
    assert not (photos.with_name("out") / "annotations.json").exists()


def test_texts_are_accepted_or_reviewed_as_a_whole(photos: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": {"text": "EXIT"}})
    script = MarkedScript([], result=TextResult("EXIT"))
    out = annotate(photos, labels, script, "ocr", DatasetFormat.jsonl, max_wrong=0.1)
    assert len((out / "answers.jsonl").read_text().splitlines()) == len(KINDS)
    assert (out / "review.jsonl").read_text() == ""


def test_text_regions_are_accepted_by_their_scores(photos: Path, tmp_path: Path) -> None:
    true: dict[str, dict[str, object]] = {
        "sure": {"text": "HI\nEXIT"},
        "unsure": {"text": "HI\nOTHER"},
    }
    labels = labelled(tmp_path / "labelled", ["sure"] * 60 + ["unsure"] * 15, true)
    path = tmp_path / "proofs.json"
    place = (photos, labels, ReadingScript([]), "ocr_with_regions", DatasetFormat.jsonl)
    out = annotate(*place, max_wrong=0.08, thresholds=path)
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    texts = [text_of(Record(ANY_FILE, answer_from_json(row["answer"]))) for row in rows]
    assert texts == ["EXIT\nHI", "HI"] * 2
    review = [json.loads(line) for line in (out / "review.jsonl").read_text().splitlines()]
    assert [row["image"] for row in review] == ["1.jpg", "3.jpg"]
    best = read_proofs(path)[-1]
    assert (best.min_precision, best.min_score, best.max_labels) == (0.92, 0.9, 2)


def test_nothing_is_accepted_in_a_folder_unlike_the_labelled_images(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(12):
        write_image(photos, f"day/{number}.jpg", "sure")
        write_image(photos, f"night/{number}.jpg", "unsure")
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": TRUE_CAR})
    out = annotate(photos, labels, MarkedScript([]), max_wrong=0.1)
    accepted = [name for name, _ in annotations(out / "annotations.json")]
    review = [name for name, _ in annotations(out / "review.json")]
    assert sorted(accepted) == sorted(f"day/{number}.jpg" for number in range(12))
    assert sorted(review) == sorted(f"night/{number}.jpg" for number in range(12))


def test_images_that_are_all_unlike_the_labelled_ones_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(12):
        write_image(photos, f"{number}.jpg", "unsure")
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": TRUE_CAR})
    with pytest.raises(RunError, match="most in answers: nothing is accepted"):
        annotate(photos, labels, MarkedScript([]), max_wrong=0.1)


def test_images_that_are_left_to_a_person_are_suggested_and_taken_back(
    photos: Path, tmp_path: Path
) -> None:
    true = {"sure": TRUE_CAR, "unsure": TRUE_DOG}
    labels = labelled(tmp_path / "labelled", ["sure"] * 60 + ["unsure"] * 15, true)
    out = annotate(photos, labels, MarkedScript([]), max_wrong=0.1, suggest=1)
    assert annotations(out / "suggested_review.json") == [("1.jpg", 0.3)]
    assert len(json.loads((out / "suggested_label_studio.json").read_text())) == 1
    reviewed = tmp_path / "reviewed.jsonl"
    reviewed.write_text(json.dumps({"image": "1.jpg", **TRUE_DOG}) + "\n")
    script = MarkedScript([])
    annotate(photos, labels, script, max_wrong=0.1, suggest=1, reviewed=reviewed)
    accepted = annotations(out / "annotations.json")
    assert accepted == [("0.jpg", 0.9), ("1.jpg", 1.0), ("2.jpg", 0.9)]
    assert annotations(out / "review.json") == [("3.jpg", 0.3)]
    assert annotations(out / "suggested_review.json") == [("3.jpg", 0.3)]
    proved = json.loads((out / "guarantee.json").read_text())["accepting"]
    assert proved["num_images"] == 75  # a suggested image is not drawn at random
    assert script.received == []


def test_without_a_proof_images_are_drawn_at_random_and_their_labels_count(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(203):
        write_image(photos, f"{number}.jpg", "sure")
    labels = labelled(tmp_path / "labelled", ["sure"] * 5, {"sure": TRUE_CAR})
    script = MarkedScript([])
    message = "with 5 labelled images .*; 2 images drawn at random are in"
    with pytest.raises(RunError, match=message):
        annotate(photos, labels, script, suggest=2)
    assert len(script.received) == 2
    out = photos.with_name("out")
    drawn = [name for name, _ in annotations(out / "suggested_review.json")]
    assert set(drawn).isdisjoint(json.loads((out / "pilot.json").read_text()))
    reviewed = tmp_path / "reviewed.jsonl"
    lines = [json.dumps({"image": name, **TRUE_CAR}) + "\n" for name in drawn]
    reviewed.write_text("".join(lines))
    with pytest.raises(RunError, match="with 7 labelled images"):
        annotate(photos, labels, script, reviewed=reviewed)
    reviewed.write_text(lines[0])
    message = f"1 of 2 images drawn at random have no labels, such as {drawn[1]}; label all"
    with pytest.raises(RunError, match=message):
        annotate(photos, labels, script, reviewed=reviewed)


def test_what_is_fixed_at_the_first_look_proves_nothing_later(photos: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 5, {"sure": TRUE_CAR})
    with pytest.raises(RunError, match="with 5 labelled images"):
        annotate(photos, labels, MarkedScript([]))
    rows = [json.dumps({"image": f"{number}.jpg", **TRUE_CAR}) + "\n" for number in range(4)]
    (photos / "labels.jsonl").write_text("".join(rows))
    with pytest.raises(RunError, match="there is no object in 0 labelled images"):
        annotate(photos, photos / "labels.jsonl", MarkedScript([]))


def test_labels_of_other_images_are_not_taken_back(photos: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": TRUE_CAR})
    reviewed = tmp_path / "reviewed.jsonl"
    reviewed.write_text(json.dumps({"image": "other.jpg", **TRUE_CAR}) + "\n")
    with pytest.raises(RunError, match=r"reviewed\.jsonl labels no image of"):
        annotate(photos, labels, MarkedScript([]), reviewed=reviewed)


def test_what_is_proved_is_written_for_the_service(photos: Path, tmp_path: Path) -> None:
    true = {"sure": TRUE_CAR, "unsure": TRUE_DOG}
    labels = labelled(tmp_path / "labelled", ["sure"] * 60 + ["unsure"] * 15, true)
    path = tmp_path / "proofs.json"
    annotate(photos, labels, MarkedScript([]), max_wrong=0.1, thresholds=path)
    proofs = read_proofs(path)
    assert [each.min_precision for each in proofs] == [0.8, 0.9]
    assert {(each.min_score, each.max_labels, each.num_images) for each in proofs} == {(0.9, 1, 75)}
    (first, _) = proofs
    assert (first.model, first.checkpoint, first.precision) == ("a", "sha", "int8")
    assert (first.calibration, first.fields) == ("key", {"task": "object_detection"})


def test_thresholds_of_texts_are_refused(photos: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": {"text": "EXIT"}})
    place = (photos, labels, MarkedScript([]), "ocr", DatasetFormat.jsonl)
    with pytest.raises(RunError, match="--thresholds needs scores, which the task's result"):
        annotate(*place, thresholds=tmp_path / "proofs.json")


@pytest.mark.parametrize(
    ("true", "message"),
    [
        ({"text": "EXIT"}, "has no true labels for object_detection"),
        ({"objects": []}, "no object in 60 labelled images"),
    ],
)
def test_labels_of_another_kind_are_refused(
    photos: Path, tmp_path: Path, true: dict[str, object], message: str
) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": true})
    with pytest.raises(RunError, match=message):
        annotate(photos, labels, MarkedScript([]))


def test_images_that_are_all_labelled_are_refused(tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"] * 60, {"sure": TRUE_CAR})
    with pytest.raises(RunError, match="all 60 images are labelled already"):
        annotate(labels.parent, labels, MarkedScript([]))


def test_a_score_of_ones_own_is_refused(photos: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path / "labelled", ["sure"], {"sure": TRUE_CAR})
    with pytest.raises(RunError, match="omit --accept-score and --min-precision"):
        annotate(photos, labels, MarkedScript([]), accept_score=0.5)


def test_a_share_without_labelled_images_is_refused(photos: Path) -> None:
    with pytest.raises(RunError, match="--suggest and --reviewed need --labelled"):
        annotate(photos, None, MarkedScript([]), max_wrong=0.05)
