"""The real Label Studio with the running service as its backend: connect, predict, prompt,
export.
"""

import base64
import io
import json
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.api_keys import hash_of
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.label_studio import (
    MISSING_LABEL_STUDIO,
    LabelStudio,
    Project,
    in_label_studio,
    install,
    running_label_studio,
)
from tests.support.label_studio_config import brush_pixels, labelled, view
from tests.support.running_service import Access, RunningService, forked_service
from tests.support.scene_images import scene_png
from tests.system.test_answers import post_form

pytestmark = pytest.mark.long  # it installs Label Studio, and its first start makes a database

KEY = "key-of-label-studio"
SIZE_WH = (320, 240)
LABELS = ("red star", "purple square")
BOXES = labelled("RectangleLabels", *LABELS)
CAPTION = '<TextArea name="caption" toName="image"/>'
EVERYTHING = view(
    BOXES,
    labelled("PolygonLabels", *LABELS, name="polygon"),
    labelled("BrushLabels", *LABELS, name="brush"),
    labelled("Choices", "star", "heart", name="choice"),
    CAPTION,
    '<TextArea name="text" toName="image" model_task="ocr"/>',
)
_VALIDATE = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.converter.brush import decode_rle
config, results = json.load(sys.stdin)
print(json.dumps({
    "errors": LabelInterface(config).validate_prediction({"result": results}, return_errors=True),
    "areas": [
        int((decode_rle(each["value"]["rle"]) == 255).sum()) // 4
        for each in results if "rle" in each["value"]
    ],
}))
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """Label Studio and the service, which know each other."""

    label_studio: LabelStudio
    service: RunningService
    files: Path

    @property
    def url(self) -> str:
        return f"{self.service.url}/integrations/label-studio"

    @property
    def password(self) -> str:
        return f"{KEY}:{self.label_studio.personal_token}"

    def connected(self, config: str, *images: str, path: str = "") -> Project:
        """Return a project with a connected backend and these images, predicted."""
        project = self.label_studio.project("with a backend", config)
        project.add_tasks(*images)
        response = project.connect(self.url + path, self.password)
        assert response.status_code == 201, response.text
        return project


@pytest.fixture(scope="module")
def pair(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if not install():
        pytest.skip(MISSING_LABEL_STUDIO)
    folder = tmp_path_factory.mktemp("label-studio")
    keys = folder / "keys"
    keys.write_text(hash_of(KEY))
    with (
        running_label_studio(folder / "data") as label_studio,
        forked_service(
            exported.home,
            folder / "service.log",
            Access(key=KEY),
            DIPTYCH_API_KEYS_FILE=str(keys),
            DIPTYCH_LABEL_STUDIO_URL=label_studio.url,
        ) as service,
    ):
        yield Pair(label_studio, service, folder / "data/files")


def data_url(seed: int = 3) -> str:
    return f"data:image/png;base64,{base64.b64encode(scene_png(seed)).decode()}"


def answer(pair: Pair, model: str, seed: int = 3, **fields: Any) -> dict[str, Any]:
    """Return the result of the service's own interface."""
    with pair.service.client() as client:
        result: dict[str, Any] = post_form(
            client, "/v1/predict", scene_png(seed), {"model": model, **fields}
        ).json()
    return result["result"]  # type: ignore[no-any-return]


def pixels(value: Mapping[str, float]) -> list[float]:
    """Return a box in percent as corners in pixels."""
    corners = (value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"])
    return [at * side / 100 for at, side in zip(corners, SIZE_WH * 2, strict=True)]


def of(results: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    return [each["value"] for each in results if each["from_name"] == name]


def test_both_models_predict_every_control_and_label_studio_accepts_it(pair: Pair) -> None:
    project = pair.connected(EVERYTHING, data_url())
    project.act("retrieve_tasks_predictions")
    (task,) = project.tasks()
    predictions = project.predictions(task)
    assert [version.partition("@")[0] for version in predictions] == list(EMBEDDED)
    for model, results in zip(EMBEDDED, predictions.values(), strict=True):
        detected = answer(pair, model, task="open_vocabulary_detection", labels=LABELS)[
            "detections"
        ]
        expected = sorted(each["box"] for each in detected)
        assert sorted(pixels(value) for value in of(results, "box")) == [
            pytest.approx(box, abs=0.01) for box in expected
        ]
        assert (
            len(detected) == len(of(results, "polygon")) == len(of(results, "brush")) == len(LABELS)
        )
        assert of(results, "choice") == [{"choices": ["star"]}]
        assert of(results, "caption") == [
            {"text": [answer(pair, model, task="captioning")["text"]]}
        ]
        assert of(results, "text") == [{"text": ["385"]}]
        checked = json.loads(in_label_studio(_VALIDATE, json.dumps([EVERYTHING, results])))
        assert checked["errors"] == []
        masks = [
            brush_pixels(value["rle"], SIZE_WH[::-1])[..., 3] == 255
            for value in of(results, "brush")
        ]
        assert checked["areas"] == [int(np.count_nonzero(mask)) for mask in masks]


def test_images_are_read_from_uploads_local_storage_and_urls(pair: Pair) -> None:
    folder = pair.files / "a set"
    folder.mkdir()
    (folder / "scène 1.png").write_bytes(scene_png(4))
    project = pair.connected(view(CAPTION), data_url(5), "https://example.com/a.png")
    project.upload("a scene.png", scene_png(3))
    project.add_local_files(folder)
    project.act("retrieve_tasks_predictions")
    found = {task["data"]["image"][:10]: project.predictions(task) for task in project.tasks()}
    seeds = {"data:image": 5, "/data/uplo": 3, "/data/loca": 4}
    for source, seed in seeds.items():
        texts = [results[0]["value"]["text"] for results in found[source].values()]
        assert texts == [
            [answer(pair, model, seed, task="captioning")["text"]] for model in EMBEDDED
        ]
    (failed,) = found["https://ex"]
    assert (
        failed
        == "failed: image is a URL, and image URLs are disabled; send a data: URL, base64 or a file"
    )
    project.act("retrieve_tasks_predictions")
    assert all(len(project.predictions(task)) == len(EMBEDDED) for task in project.tasks()[:1])


def test_predictions_become_annotations_and_coco(pair: Pair) -> None:
    model = "paligemma-mini"
    project = pair.connected(view(BOXES), data_url(), path=f"/{model}")
    project.act("retrieve_tasks_predictions")
    (version,) = project.predictions(project.tasks()[0])
    project.act("predictions_to_annotations", model_version=version)
    with zipfile.ZipFile(io.BytesIO(project.exported("COCO"))) as archive:
        coco = json.loads(archive.read("result.json"))
    names = {each["id"]: each["name"] for each in coco["categories"]}
    found = {names[each["category_id"]]: each["bbox"] for each in coco["annotations"]}
    detected = answer(pair, model, task="open_vocabulary_detection", labels=LABELS)["detections"]
    assert found == {
        each["label"]: pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
        for each in detected
        for x1, y1, x2, y2 in [each["box"]]
    }


def test_prompts_of_a_person_are_answered(pair: Pair) -> None:
    config = view(
        '<TextArea name="prompt" toName="image"/>',
        BOXES,
        labelled("BrushLabels", *LABELS, name="brush"),
    )
    project = pair.label_studio.project("interactive", config)
    project.add_tasks(data_url())
    backend = project.connect(pair.url, pair.password, is_interactive=True).json()["id"]
    (task,) = project.tasks()
    prompt = {
        "type": "textarea",
        "from_name": "prompt",
        "to_name": "image",
        "value": {"text": ["purple square"]},
    }
    (box,) = of(project.prompt(backend, task, prompt)["data"]["result"], "box")
    assert box["rectanglelabels"] == ["purple square"]
    drawn = {"type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": box}
    (mask,) = of(project.prompt(backend, task, drawn)["data"]["result"], "brush")
    alpha = brush_pixels(mask["rle"], SIZE_WH[::-1])[..., 3] == 255
    x1, y1, x2, y2 = map(round, pixels(box))
    assert alpha[y1:y2, x1:x2].mean() > 0.9
    assert alpha.sum() < 1.3 * (x2 - x1) * (y2 - y1)
    point = {
        "type": "keypointlabels",
        "from_name": "box",
        "to_name": "image",
        "value": {"x": 1, "y": 1, "width": 0},
    }
    (error,) = project.prompt(backend, task, point)["errors"]
    assert "models+take+no+points" in error


@pytest.mark.parametrize(
    ("config", "password", "shown"),
    [
        (
            view(BOXES),
            "wrong",
            "authentication parameters were either not provided or are incorrect",
        ),
        (
            view(labelled("KeyPointLabels", "a")),
            KEY,
            "the+labelling+configuration+has+the+control+tags",
        ),
    ],
)
def test_label_studio_shows_why_a_backend_cannot_be_connected(
    pair: Pair, config: str, password: str, shown: str
) -> None:
    response = pair.label_studio.project("refused", config).connect(pair.url, password)
    assert response.status_code == 400
    assert shown in response.text


def test_many_tasks_are_predicted_in_calls_that_end_in_time(pair: Pair) -> None:
    """Each call returns what is done within 50 s; on a slow machine the next one predicts the
    rest.
    """
    num_tasks = 100
    project = pair.connected(view(BOXES, CAPTION), *map(data_url, range(num_tasks)))
    num_predicted = 0
    elapsed_s = list[float]()
    while num_predicted < num_tasks:
        start_s = time.monotonic()
        num_before = num_predicted
        project.act("retrieve_tasks_predictions")
        elapsed_s.append(time.monotonic() - start_s)
        num_predicted = sum(
            len(project.predictions(task)) == len(EMBEDDED) for task in project.tasks()
        )
        assert num_predicted > num_before
    print(
        f"{num_tasks} tasks, {len(EMBEDDED)} models, 2 controls:"
        f" {', '.join(f'{s:.1f}' for s in elapsed_s)} s"
    )
    assert max(elapsed_s) < 60
