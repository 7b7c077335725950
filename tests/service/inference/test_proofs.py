"""`min_precision`: what is proved is kept, and anything else refused. An image that is unlike those
of the calibration has no calibrated scores and no proof.
"""

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.analysis import analyze
from service.errors import ServiceError
from service.inference.core import Core
from service.inference.models import ServedModels, ServedProof
from service.inference.prediction import Answer, Piece
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.served_models import served_scoring
from service.schema.rendering import answer_json
from service.settings import Settings, SettingsError
from service.telemetry.metrics import UNFAMILIAR_IMAGES
from tasks.results import DetectionsResult
from tasks.scores import Calibration, ImageStatistics, Proof, calibration_key
from tests.service.inference.test_core import SCORE
from tests.service.inference.test_tiled_answers import COUNTED, LEFT, RIGHT, box, core_of, picture
from tests.support.catalog import FLORENCE
from tests.support.fake_service import (
    CHECKPOINT,
    FLORENCE_ID,
    PNG,
    compare,
    context,
    make_core,
    predict,
    run,
    runner_model,
    served,
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


def core_with(folder: Path, *rows: dict[str, Any]) -> Core:
    """Return a core whose Florence-2 has these proofs."""
    core = make_core()
    path = folder / "proofs.json"
    path.write_text(json.dumps({"proofs": rows}))
    models = {model.id: model for model in core.models}
    florence = runner_model(core.models)
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
    model = runner_model(core_with(tmp_path, proof(0.9)).models)
    calibration = Calibration(FLORENCE_ID, CHECKPOINT, "object_detection", (0.0,), (0.5,))
    listed = replace(model, calibrations={("object_detection", False): calibration}).describe()
    assert listed["calibration"] == calibration_key({("object_detection", False): calibration})
    assert len(listed["calibration"]) == 64
    named = ("fields", "min_precision", "confidence", "min_score", "max_labels", "num_images")
    assert listed["proofs"] == [{name: proof(0.9)[name] for name in named}]
    assert served(FLORENCE).describe()["calibration"] == ""


SMALLEST: Any = pytest.approx(1 / 200)  # of 199 distances


def near(embedding: float) -> ImageStatistics:
    """Return the statistics of images whose one feature is within 9.9 of this."""
    one = np.ones(1, np.float32)
    distances = tuple(np.linspace(0, 9.9, 199).tolist())
    return ImageStatistics("float32", embedding * one, one, (1.0,), 1.0, distances)


def calibrate(core: Core, embedding: float, **changes: Any) -> Core:
    """Halve the scores about images near an embedding, without and with tiles."""
    model = runner_model(core.models)
    halved = Calibration(model.id, "c", OD["task"], (0.0, 1.0), (0.0, 0.5), images=near(embedding))
    tiled = replace(halved, with_tiles=True)
    calibrations = {(halved.task, False): halved, (halved.task, True): tiled}
    core.models = ServedModels({model.id: replace(model, calibrations=calibrations, **changes)})
    return core


def embedding_of(image: bytes) -> float:
    answer = predict(make_core(), image, **OD, image_embedding=True)
    encoded = answer_json(answer, "1").image_embedding
    assert encoded is not None
    (value,) = np.frombuffer(base64.b64decode(encoded), "<f4")
    return float(value)


def scores(answer: Answer) -> list[Any]:
    assert isinstance(answer.result, DetectionsResult)
    return [detection.score for detection in answer.result.detections]


def num_unfamiliar() -> float:
    return float(UNFAMILIAR_IMAGES.labels(FLORENCE_ID)._value.get())


def test_unfamiliar_image_is_not_calibrated() -> None:
    embedding = embedding_of(PNG)
    before = num_unfamiliar()
    familiar = predict(calibrate(make_core(), embedding), **OD)
    assert (familiar.familiarity, familiar.is_calibrated) == (1, True)
    assert scores(familiar) == [round(SCORE / 2, 4)]
    assert num_unfamiliar() == before
    core = calibrate(make_core(), embedding + 10)
    (_, compared), *_ = compare(core, **OD).answers
    for answer in (predict(core, **OD), predict(core, **OD), compared):
        assert isinstance(answer, Answer)
        assert (answer.familiarity, answer.is_calibrated) == (SMALLEST, False)
        assert scores(answer) == [round(SCORE, 4)]
        assert answer_json(answer, "1").familiarity == answer.familiarity
    assert num_unfamiliar() == before + 3
    sampled = predict(calibrate(make_core(), embedding + 5), **OD, temperature=1.0, seed=1)
    assert sampled.familiarity == pytest.approx(0.495, abs=0.01)


def test_unknown_familiarity() -> None:
    core = calibrate(make_core(), 1000)
    assert answer_json(predict(core, **OD), "1").image_embedding is None
    assert predict(core, task="captioning").familiarity is None
    steps = [OD | {"id": "a"}, OD | {"id": "b", "each": "a", "view": "crop"}]
    analysis = run(analyze(core, PNG, {"steps": steps}, context()))
    whole, crop = (step.answers[0].outcome for step in analysis.steps)
    assert isinstance(whole, Answer)
    assert isinstance(crop, Answer)
    assert (whole.familiarity, whole.is_calibrated) == (SMALLEST, False)
    assert (crop.familiarity, crop.is_calibrated) == (None, True)


@pytest.mark.parametrize("fields", [OD, COUNTED])
def test_nothing_is_proved_about_an_unfamiliar_image(fields: dict[str, Any]) -> None:
    _, request = parse_fields(PredictFields, fields)
    proof = Proof(FLORENCE_ID, "c", "float32", "", fields, 0.9, 0.9, 0.0, 9, 80)
    for distance, is_refused in ((0, False), (10, True)):
        core = core_of("", box("cat", 1, 1, 500, 500), "")
        calibrate(core, embedding_of(picture()) + distance, proofs=(ServedProof(proof, request),))
        if not is_refused:
            assert predict(core, picture(), **fields, min_precision=0.9).guarantee is not None
            continue
        with pytest.raises(ServiceError, match="is unlike those that florence-2-mini") as caught:
            predict(core, picture(), **fields, min_precision=0.9)
        assert (caught.value.code, caught.value.param) == ("unsupported_task", "min_precision")


async def test_the_whole_image_decides_for_its_tiles() -> None:
    embedding = await asyncio.to_thread(embedding_of, picture())
    assert min(abs(embedding - side) for side in (LEFT, RIGHT)) > 10
    known_score = 0.0
    for distance, is_known in ((0, True), (10, False)):
        core = core_of("", box("cat", 1, 1, 500, 500), "")
        calibrate(core, embedding + distance)
        events = [event async for event in core.stream(picture(), COUNTED, context())]
        answer = events[-1]
        assert isinstance(answer, Answer)
        assert (answer.familiarity, answer.is_calibrated) == (1 if is_known else SMALLEST, is_known)
        (score,) = scores(answer)
        known_score = known_score or score
        assert score == pytest.approx(known_score if is_known else 2 * known_score, abs=1e-4)
        views = [event.view for event in events if isinstance(event, Piece)]
        assert views[1] is not None
        assert isinstance(views[1].result, DetectionsResult)
        assert views[1].result.detections[0].score == score
