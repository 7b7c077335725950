"""Guarantees on look-alikes are simulated from the answers that a folder keeps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diptych_client import Detection, DetectionsResult
from diptych_client.evaluation.readers import read_dataset
from diptych_client.transports.rest_messages import answer_json
from laboratory import lookalikes
from laboratory.evaluation.guarantees import read_judged
from laboratory.things.calibration import ASKED
from tests.support.client_answers import answer
from tests.support.drawn_material import DrawnMaterial

NUM_SCENES = 40
TASK = "open_vocabulary_detection"


def write_answers(folder: Path, model: str, is_every_second_wrong: bool) -> None:
    """Write the file of `diptych evaluate`."""
    lines = []
    for number, each in enumerate(read_dataset(folder / "plain").images):
        found = [Detection(true.box_xyxy, true.label, 0.9) for true in each.objects or ()]
        if is_every_second_wrong and number % 2:
            found = [replace(detection, label="truck", score=0.5) for detection in found]
        result = DetectionsResult(tuple(found))
        parameters = {"labels": list(ASKED)}
        given = answer_json(answer(result, task=TASK, model=model))
        row = {"image": each.image.name, "parameters": parameters, "answer": given}
        lines.append(json.dumps(row) + "\n")
    out = folder / f"plain-{TASK}-{model}"
    out.mkdir()
    (out / "answers.jsonl").write_text("".join(lines), encoding="utf-8")


def test_the_wrong_labels_of_one_model_are_proved_away_and_the_other_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lookalikes, "Material", lambda _: DrawnMaterial())
    lookalikes.write_scenes(DrawnMaterial(), tmp_path / "plain", NUM_SCENES)
    write_answers(tmp_path, "florence-2-things", is_every_second_wrong=False)
    write_answers(tmp_path, "paligemma-things", is_every_second_wrong=True)
    (tmp_path / "complete").touch()
    lookalikes.main(
        [str(tmp_path), "--answers", str(tmp_path), "--draws", "20", "--labelled", "500"]
    )
    rows = [line.split(" | ")[2:] for line in capsys.readouterr().out.splitlines() if TASK in line]
    wrong = {row[0]: float(row[2]) for row in rows}
    found = {row[0]: float(row[3]) for row in rows}
    coverage = {row[0]: float(row[6]) for row in rows}
    assert found["florence-2-things"] == 1.0
    assert found["paligemma-things"] == pytest.approx(1 - wrong["paligemma-things"], abs=0.001)
    assert wrong["florence-2-things"] == 0.0
    assert wrong["paligemma-things"] == pytest.approx(0.5, abs=0.1)
    assert coverage["florence-2-things"] > 0.95
    assert 0.3 < coverage["paligemma-things"] < 0.7


def test_judged_images_have_one_order_whatever_that_of_the_answers(tmp_path: Path) -> None:
    lookalikes.write_scenes(DrawnMaterial(), tmp_path / "plain", NUM_SCENES)
    write_answers(tmp_path, "paligemma-things", is_every_second_wrong=True)
    file = tmp_path / f"plain-{TASK}-paligemma-things" / "answers.jsonl"
    images = read_dataset(tmp_path / "plain").images
    judged = read_judged(images, [file], TASK)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(reversed(lines)), encoding="utf-8")
    assert read_judged(images, [file], TASK) == judged
