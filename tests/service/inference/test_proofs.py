"""`min_precision`: what is proved is kept, and anything else refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.analysis import analyze
from service.errors import InvalidRequest, ServiceError
from service.inference.core import Core
from service.inference.prediction import Piece
from service.inference.served_models import ServedModels, served_scoring
from service.schema.rendering import model_json
from service.settings import Settings, SettingsError
from tasks.results import DetectionsResult
from tasks.scores import Calibration, calibration_key
from tests.service.inference.test_core import SCORE
from tests.service.inference.test_tiled_answers import picture
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    CHECKPOINT,
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    OD_PROMPT,
    PNG,
    context,
    make_core,
    predict,
    run,
    served_models,
)

OD: dict[str, Any] = {"task": "object_detection"}
FIND: dict[str, Any] = {"task": "open_vocabulary_detection", "labels": ["red circle"]}


def proof(min_precision: float, score: float = 0.0, /, **changes: Any) -> dict[str, Any]:
    return {
        "model": FLORENCE_ID,
        "checkpoint": CHECKPOINT,
        "precision": "float32",
        "calibration": "",
        "fields": OD,
        "min_precision": min_precision,
        "confidence": 0.95,
        "min_score": score,
        "max_labels": 1,
        "num_images": 80,
    } | changes


def core_with(folder: Path, *rows: dict[str, Any], answer: str | None = None) -> Core:
    """Return a core whose Florence-2 has these proofs."""
    core = make_core(
        decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS | {OD_PROMPT: answer})}
        if answer is not None
        else None
    )
    path = folder / "proofs.json"
    path.write_text(json.dumps({"proofs": rows}))
    models = {model.id: model for model in core.models}
    florence = models[FLORENCE_ID]
    settings = Settings(calibration=(str(path),))
    _, proofs = served_scoring(florence.manifest, folder, settings, florence.precision)
    core.models = ServedModels(models | {FLORENCE_ID: replace(florence, proofs=proofs)})
    return core


def test_proved_objects(tmp_path: Path) -> None:
    core = core_with(tmp_path, proof(0.9, SCORE - 0.01), proof(0.99, SCORE + 0.01))
    proved = predict(core, **OD, min_precision=0.5)
    assert isinstance(proved.result, DetectionsResult)
    assert len(proved.result.detections) == 1
    assert proved.guarantee is not None
    assert (proved.guarantee.min_precision, proved.guarantee.left_out) == (0.9, 0)
    left_out = predict(core, **OD, min_precision=0.95, mask_format="rle")
    assert isinstance(left_out.result, DetectionsResult)
    assert left_out.result.detections == ()
    assert left_out.guarantee is not None
    assert (left_out.guarantee.min_precision, left_out.guarantee.left_out) == (0.99, 1)
    assert predict(core, **OD).guarantee is None


@pytest.mark.parametrize(
    "fields",
    [
        OD | {"min_precision": 0.96},
        OD | {"min_precision": 0.9, "temperature": 0.5},
        OD | {"min_precision": 0.9, "nms_iou": 0.5},
        OD | {"min_precision": 0.9, "tiles": "1x2"},
        FIND | {"min_precision": 0.9},
    ],
)
def test_unproved_request(tmp_path: Path, fields: dict[str, Any]) -> None:
    core = core_with(tmp_path, proof(0.9), proof(0.95))
    with pytest.raises(ServiceError, match=f"is not proved for {FLORENCE_ID}") as caught:
        predict(core, **fields)
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "min_precision")


def test_unproved_objects_are_not_streamed(tmp_path: Path) -> None:
    tiled = OD | {"tiles": "1x2"}
    core = core_with(tmp_path, proof(0.9, SCORE + 0.01, fields=tiled))

    async def views(**more: Any) -> list[bool]:
        events = core.stream(picture(), tiled | more, context())
        return [event.view is not None async for event in events if isinstance(event, Piece)]

    assert run(views()) == [True] * 3
    assert run(views(min_precision=0.9)) == [False] * 3


def test_proof_in_an_analysis(tmp_path: Path) -> None:
    core = core_with(tmp_path, proof(0.9))
    steps = [{"id": "a", **OD, "min_precision": 0.9}]
    analysis = run(analyze(core, PNG, {"steps": steps}, context()))
    assert not analysis.steps[0].answers[0].outcome.guarantee.left_out  # type: ignore[union-attr]
    steps.append({"id": "b", **OD, "each": "a", "view": "crop", "min_precision": 0.9})
    with pytest.raises(InvalidRequest, match="is proved about images, not about the boxes of each"):
        run(analyze(core, PNG, {"steps": steps}, context()))
    with pytest.raises(ServiceError, match=r"steps\[0\] \(a\): min_precision is 0.9"):
        run(analyze(make_core(), PNG, {"steps": steps[:1]}, context()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"checkpoint": "before"}, "is of the checkpoint 'before'; the one served is 'c"),
        ({"precision": "int8"}, "is of the precision 'int8'; the one served is 'float32'"),
        ({"calibration": "x"}, "is of the calibration 'x'; the one served is ''"),
        ({"fields": OD | {"labels": ["a"]}}, "has invalid fields: labels is not a parameter"),
        ({"min_precision": 2}, "is not a valid calibration file"),
    ],
)
def test_proof_of_another_model(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^DIPTYCH_CALIBRATION: .*{reason}"):
        core_with(tmp_path, proof(0.9, **change))


def test_proofs_are_listed(tmp_path: Path) -> None:
    model = core_with(tmp_path, proof(0.9)).models.get(FLORENCE_ID)
    calibration = Calibration(FLORENCE_ID, CHECKPOINT, "object_detection", (0.0,), (0.5,))
    listed = model_json(replace(model, calibrations={("object_detection", False): calibration}))
    assert listed["calibration"] == calibration_key({("object_detection", False): calibration})
    assert len(listed["calibration"]) == 64
    named = ("fields", "min_precision", "confidence", "min_score", "max_labels", "num_images")
    assert listed["proofs"] == [{name: proof(0.9)[name] for name in named}]
    assert model_json(served_models().get(FLORENCE_ID))["calibration"] == ""
