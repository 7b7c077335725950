"""Scenes under their conditions, and the evaluation of a service that knows the true answers."""

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from export.scenes import box_xyxy
from laboratory.evaluation import (
    CONDITIONS,
    accuracy_table,
    evaluate,
    evaluation_scene,
)
from laboratory.evaluation.client import MAX_ATTEMPTS
from laboratory.evaluation.scenes import (
    SceneImage,
    images_of_all_sizes,
    large_images,
    rendered,
    write_coco,
)
from laboratory.questions import Question, questions
from laboratory.scoring import TASK_MEASURES, Measure, Scorecard, Tally, score_answer
from tasks.table import TASKS
from tests.support.true_results import true_result, wrong_result

MODEL_ID = "truthful"
FORMATS = {
    "plain": ((384, 384), "PNG"),
    "small": ((100, 100), "PNG"),
    "large": ((2000, 2000), "PNG"),
    "jpeg": ((384, 384), "JPEG"),
    "blurred": ((384, 384), "PNG"),
    "stretched": ((576, 384), "PNG"),
    "40px": ((40, 40), "PNG"),
    "22px": ((22, 22), "PNG"),
}


@dataclass(slots=True)
class TruthfulService:
    """Answers the questions about the first scenes; `behaviour` is by scene index and question."""

    num_scenes: int
    behaviour: Callable[[int, str], str] = lambda _index, _name: "true"
    tasks: tuple[str, ...] = tuple(TASKS)
    num_refused: int = 0  # first requests that get 429
    num_received: int = 0
    known: dict[bytes, tuple[int, list[Question]]] = field(default_factory=dict)

    def evaluate(self, model_id: str = MODEL_ID, num_clients: int = 1) -> Scorecard:
        render = CONDITIONS["stretched"]
        for index in range(self.num_scenes):
            scene = evaluation_scene(index)
            image = render(scene)
            scaled = [question.scaled(image.size_wh) for question in questions(scene)]
            self.known[image.data] = (index, scaled)
        transport = httpx.MockTransport(self.answer)
        with httpx.Client(base_url="http://service", transport=transport) as client:
            return evaluate(client, model_id, render, self.num_scenes, num_clients)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": MODEL_ID, "tasks": self.tasks}]})
        self.num_received += 1
        if self.num_received <= self.num_refused:
            return httpx.Response(429, headers={"Retry-After": "0"}, text="too much")
        index, question = self.question_of(request)
        match self.behaviour(index, question.name):
            case "not offered":
                return httpx.Response(422)
            case "broken":
                return httpx.Response(500, text="a defect")
            case "wrong":
                return httpx.Response(200, json={"result": wrong_result(question.truth)})
        return httpx.Response(200, json={"result": true_result(question.truth)})

    def question_of(self, request: httpx.Request) -> tuple[int, Question]:
        header = f"Content-Type: {request.headers['content-type']}\n\n".encode()
        fields = dict[str, Any]()
        for part in message_from_bytes(header + request.read()).walk():
            if name := part.get_param("name", header="content-disposition"):
                fields[str(name)] = part.get_payload(decode=True)
        index, scene_questions = self.known[fields.pop("image")]
        texts = {name: value.decode() for name, value in fields.items()}
        assert (texts.pop("model"), texts.pop("constrained")) == (MODEL_ID, "false")
        task = texts.pop("task")
        for question in scene_questions:
            parameters = {}
            for name, value in question.parameters.items():
                parameters[name] = json.dumps(value) if isinstance(value, list) else value
            if question.task == task and parameters == texts:
                return index, question
        raise AssertionError(f"no question of scene {index} has the fields {texts}")


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions(name: str) -> None:
    for index in range(4):
        image, boxes = next(rendered([name], [index]))
        file = Image.open(io.BytesIO(image.data))
        assert (file.size, file.format) == FORMATS[name]
        assert image.size_wh == file.size
        assert image.media_type == f"image/{FORMATS[name][1].lower()}"
        drawn = evaluation_scene(index).objects if min(file.size) >= 100 else ()
        for (_, (left, top, right, bottom)), shape in zip(boxes, drawn, strict=bool(drawn)):
            centre = pixels_of(image)[int((top + bottom) / 2), int((left + right) / 2)]
            assert np.abs(centre - shape.rgb).max() <= 12  # JPEG and blurring change it a little


def pixels_of(image: SceneImage) -> Any:
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"), dtype=int)


def test_blurred_edges_are_softer() -> None:
    steepest = []
    for name in ("plain", "blurred"):
        pixels = pixels_of(CONDITIONS[name](evaluation_scene(0)))
        steepest.append(np.abs(np.diff(pixels, axis=1)).max())
    assert steepest[1] < 0.6 * steepest[0]


def test_every_tenth_scene_is_empty() -> None:
    scenes = [evaluation_scene(index) for index in range(100)]
    assert [index for index in range(100) if not scenes[index].objects] == list(range(9, 100, 10))
    assert 40 <= sum(scene.word is None for scene in scenes) <= 60


def test_coco_labels_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    write_coco(tmp_path / "scenes", rendered(["stretched", "jpeg"], [3, 4]))
    coco = COCO(tmp_path / "scenes" / "annotations.json")
    sizes = [(576, 384), (384, 384)]
    for image, (index, size_wh) in zip(coco.imgs.values(), product([3, 4], sizes), strict=True):
        with Image.open(tmp_path / "scenes" / "images" / image["file_name"]) as file:
            assert file.size == size_wh == (image["width"], image["height"])
        rows = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        for row, drawn in zip(rows, evaluation_scene(index).objects, strict=True):
            left, top, right, bottom = np.array(box_xyxy(drawn)) * (*size_wh, *size_wh) / 192
            assert row["bbox"] == pytest.approx((left, top, right - left, bottom - top))
            assert coco.cats[row["category_id"]]["name"] == drawn.shape


def test_shapes_of_large_images_lie_apart_inside() -> None:
    counts = []
    for image, boxes in large_images(4, seed=3):
        width, height = image.size_wh
        counts.append(len(boxes))
        for number, (_, (left, top, right, bottom)) in enumerate(boxes):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            for _, other in boxes[:number]:
                is_beside = left > other[2] or right < other[0]
                assert is_beside or top > other[3] or bottom < other[1]
    assert counts == [12, 12, 12, 0]


def test_images_of_all_sizes_have_one_to_four_shapes() -> None:
    shares = []
    for image, boxes in images_of_all_sizes(40):
        assert 1 <= len(boxes) <= 4
        shares += [(right - left) / image.size_wh[0] for _, (left, _, right, _) in boxes]
    assert min(shares) == pytest.approx(0.03, abs=0.01)
    assert max(shares) == pytest.approx(0.33, abs=0.03)


def test_true_answers_score_full_marks() -> None:
    service = TruthfulService(10, lambda _, name: "not offered" if "region" in name else "true")
    scorecard = service.evaluate(num_clients=4)
    assert {tally.f1 for tally in scorecard.tallies.values()} == {1.0}
    assert scorecard.tally("object_detection", "empty").num_expected == 1
    assert not [name for name, _ in scorecard.tallies if "region" in name]


def test_a_wrong_answer_lowers_its_question_only() -> None:
    service = TruthfulService(
        4, lambda index, name: "wrong" if (index, name) == (0, "captioning short") else "true"
    )
    scorecard = service.evaluate()
    assert scorecard.tally("captioning short", "exact").f1 == 0.75
    assert scorecard.tally("captioning detailed", "exact").f1 == 1


def test_only_offered_tasks_are_requested() -> None:
    scorecard = TruthfulService(2, tasks=("ocr", "captioning")).evaluate()
    assert {name.split()[0] for name, _ in scorecard.tallies} == {"ocr", "captioning"}


def test_refused_requests_are_repeated() -> None:
    service = TruthfulService(1, tasks=("ocr",), num_refused=MAX_ATTEMPTS - 1)
    assert service.evaluate().tally("ocr", "exact").f1 == 1
    assert service.num_received == MAX_ATTEMPTS
    with pytest.raises(RuntimeError, match=r"answered ocr with 429: too much"):
        TruthfulService(1, tasks=("ocr",), num_refused=MAX_ATTEMPTS).evaluate()


@pytest.mark.parametrize("num_clients", [1, 3])
def test_errors_stop_the_evaluation(num_clients: int) -> None:
    service = TruthfulService(
        5, lambda index, name: "broken" if (index, name) == (1, "ocr") else "true"
    )
    with pytest.raises(RuntimeError, match=r"truthful answered ocr with 500: a defect"):
        service.evaluate(num_clients=num_clients)
    with pytest.raises(ValueError, match="other is not served; served models: truthful"):
        service.evaluate("other")


@pytest.mark.parametrize(
    ("title", "tallies", "cell"),
    [
        (
            "open_vocabulary_detection, F1",
            {
                ("open_vocabulary_detection shape", "f1_at_50"): Tally(8, 10, 10),
                ("open_vocabulary_detection several", "f1_at_50"): Tally(1, 2, 8),
                ("open_vocabulary_detection shape", "f1_at_75"): Tally(3, 10, 10),
                ("open_vocabulary_detection absent", "empty"): Tally(0, 1, 1),
            },
            "0.60 / 0.30",
        ),
        (
            "ocr, ",
            {("ocr", "exact"): Tally(9, 10, 10), ("ocr_with_regions", "exact"): Tally(0, 9, 9)},
            "0.90 / -",
        ),
        ("ocr, ", {("ocr", "empty"): Tally(9, 10, 10)}, "-"),
        ("no word", {("ocr", "empty"): Tally(9499, 10_000, 10_000)}, "0.94"),  # rounded down
        ("no word", {("ocr", "empty"): Tally(29, 100, 100)}, "0.29"),
        (
            "boxes with score",
            {
                ("object_detection", "confident_at_50"): Tally(3, 3, 3),
                ("phrase_grounding caption", "confident_at_50"): Tally(0, 1, 1),
                ("object_detection", "confident"): Tally(4, 10, 10),
            },
            "0.75 / 0.40",
        ),
    ],
)
def test_variants_are_pooled(
    title: str, tallies: dict[tuple[str, Measure], Tally], cell: str
) -> None:
    table = accuracy_table({"one": Scorecard(tallies), "other": Scorecard()})
    (row,) = re.findall(rf"^\| {title}.*", table, re.MULTILINE)
    assert row.split(" | ")[1:] == [cell, "- |"]
    assert len(table.splitlines()) == 2 + len(TASK_MEASURES)


def test_every_question_counts_in_a_measure() -> None:
    for index in range(20):
        for question in questions(evaluation_scene(index)):
            scorecard = score_answer(true_result(question.truth), question, (192, 192))
            values = set[float | None]()
            for pools in TASK_MEASURES.values():
                values |= {pool.value(scorecard) for pool in pools}
            assert values == {None, 1.0}, question.name
    assert {title.partition(",")[0] for title in TASK_MEASURES} >= set(TASKS)
