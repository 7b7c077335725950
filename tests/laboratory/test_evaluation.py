"""The evaluation: measures of hand-made answers, and a service that knows the true answers."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from diptych_client import (
    AnswerOptions,
    Detection,
    DetectionsResult,
    ImageSize,
    Instance,
    InstancesResult,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from diptych_client.errors import new_error
from diptych_client.geometry import corners
from diptych_client.results import Result
from export.scenes import Scene, render_scene
from laboratory.evaluation import (
    ROWS,
    Measure,
    Scorecard,
    Tally,
    accuracy_table,
    evaluate,
    score_answer,
)
from laboratory.questions import Question, questions
from laboratory.scenes import evaluation_scene, png
from tasks.table import TASKS

SIZE = ImageSize(100, 80)
BOX = (10.0, 10.0, 30.0, 30.0)
FAR = (60.0, 10.0, 80.0, 30.0)
RIGHT = Tally(1, 1, 1)
WRONG = Tally(0, 1, 1)


def boxes(*values: tuple[str, tuple[float, ...]]) -> DetectionsResult:
    detections = []
    for label, (x1, y1, x2, y2) in values:
        detections.append(Detection((x1, y1, x2, y2), label, 0.9))
    return DetectionsResult(tuple(detections))


def masks(*outlines: tuple[tuple[float, float], ...]) -> InstancesResult:
    return InstancesResult(tuple(Instance(BOX, "", 0.9, (outline,)) for outline in outlines))


def words(*texts: str, bottom: float = 30.0) -> TextRegionsResult:
    quad = corners((10.0, 10.0, 30.0, bottom))
    return TextRegionsResult(tuple(TextRegion(quad, text, 0.9) for text in texts))


ONE_BOX = boxes(("circle", BOX))
BOTH = boxes(("circle", BOX), ("star", FAR))


@pytest.mark.parametrize(
    ("result", "truth", "measure", "expected"),
    [
        (boxes(), BOTH, "f1_at_50", Tally(0, 0, 2)),
        (boxes(("star", FAR), ("circle", BOX)), BOTH, "f1_at_75", Tally(2, 2, 2)),
        (boxes(("circle", BOX), ("circle", BOX)), BOTH, "f1_at_50", Tally(1, 2, 2)),
        (boxes(("circle", FAR), ("star", BOX)), BOTH, "f1_at_50", Tally(0, 2, 2)),
        (boxes(("square", BOX)), ONE_BOX, "f1_at_50", WRONG),
        (boxes(("circle", (10, 10, 30, 20))), ONE_BOX, "f1_at_50", RIGHT),  # an IoU of 0.5
        (boxes(("circle", (10, 10, 30, 20))), ONE_BOX, "f1_at_75", WRONG),
        (boxes(("circle", (10, 10, 30, 19))), ONE_BOX, "f1_at_50", WRONG),
        # an absent label is right only without a box
        (boxes(), boxes(), "empty", RIGHT),
        (boxes(("circle", BOX)), boxes(), "empty", WRONG),
        (boxes(("circle", BOX)), boxes(), "f1_at_50", Tally()),
        (TextResult("STOP"), TextResult("STOP"), "exact", RIGHT),
        (TextResult("A"), TextResult(""), "empty", WRONG),
        (TextResult("stop"), TextResult("STOP"), "exact_if_any", WRONG),
        (TextResult(""), TextResult(""), "empty", RIGHT),
        (TextResult(""), TextResult(""), "exact_if_any", Tally()),
        (TextResult("A"), TextResult("A"), "exact_if_any", RIGHT),
        (words("STOP", bottom=21), words("STOP"), "exact", RIGHT),
        (words("STOP", bottom=19), words("STOP"), "exact", WRONG),
        (words("SHOP"), words("STOP"), "exact", WRONG),
        (words("STOP", "STOP"), words("STOP"), "exact", WRONG),
        (words(), words("STOP"), "exact", WRONG),
        # masks of all instances are united
        (masks(), masks(corners(BOX)), "mask_iou", WRONG),
        (masks(corners(BOX), corners(BOX)), masks(corners(BOX)), "mask_iou", RIGHT),
        (masks(corners(BOX), corners(FAR)), masks(corners(BOX)), "mask_iou", Tally(0.5, 1, 1)),
        (masks(corners((10, 10, 25, 30))), masks(corners(BOX)), "mask_iou", Tally(0.75, 1, 1)),
    ],
)
def test_measures(result: Result, truth: Result, measure: Measure, expected: Tally) -> None:
    measures = score_answer(result, Question("q", "ocr", {}, truth), SIZE)
    assert measures.get(measure, Tally()) == expected


def test_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="the result of ocr is DetectionsResult"):
        score_answer(boxes(), Question("q", "ocr", {}, TextResult("STOP")), SIZE)


def small(scene: Scene) -> Image.Image:
    return render_scene(scene).resize((150, 100))


class TruthfulClient:
    """Answers questions about the first scenes, but none about a region."""

    def __init__(self, num_scenes: int) -> None:
        self.questions = {}
        for scene in map(evaluation_scene, range(num_scenes)):
            scaled = [question.scaled((150, 100)) for question in questions(scene)]
            self.questions[png(small(scene))] = scaled

    def predict(
        self, image: bytes, task: str, parameters: Any, *, model: str, options: AnswerOptions
    ) -> Any:
        assert (model, options) == ("truthful", AnswerOptions(constrained=False))
        for question in self.questions[image]:
            if (question.task, question.parameters) == (task, parameters):
                if "region" in question.name:
                    raise new_error("unsupported_task", "")
                return SimpleNamespace(result=question.truth, image=ImageSize(150, 100))
        raise AssertionError(f"no question about {task} has the parameters {parameters}")


def test_offered_tasks_are_scored() -> None:
    client: Any = TruthfulClient(10)
    scorecard = evaluate(client, "truthful", small, 10, num_clients=4)
    assert {tally.f1 for tally in scorecard.tallies.values()} == {1.0}
    assert scorecard.tally("object_detection", "empty").num_expected == 1
    assert scorecard.tally("visual_question_answering count", "exact").num_expected == 10
    assert not [name for name, _ in scorecard.tallies if "region" in name]


@pytest.mark.parametrize(
    ("name", "tallies", "cell"),
    [
        (
            "open_vocabulary_detection",
            {
                ("open_vocabulary_detection shape", "f1_at_50"): Tally(8, 10, 10),
                ("open_vocabulary_detection several", "f1_at_50"): Tally(1, 2, 8),
                ("open_vocabulary_detection shape", "f1_at_75"): Tally(3, 10, 10),
                ("open_vocabulary_detection absent", "empty"): Tally(0, 1, 1),
            },
            "0.60 / 0.30 / 0.00",
        ),
        (
            "ocr",
            {("ocr", "exact"): Tally(9, 10, 10), ("ocr_with_regions", "exact"): Tally(0, 9, 9)},
            "0.90 / - / -",
        ),
        ("ocr", {("ocr_with_regions", "exact"): Tally(9, 10, 10)}, "-"),
        ("ocr", {("ocr", "empty"): Tally(9499, 10_000, 10_000)}, "- / - / 0.94"),  # rounded down
        ("ocr", {("ocr", "empty"): Tally(29, 100, 100)}, "- / - / 0.29"),
    ],
)
def test_variants_are_pooled(
    name: str, tallies: dict[tuple[str, Measure], Tally], cell: str
) -> None:
    table = accuracy_table({"one": Scorecard(tallies), "other": Scorecard()})
    (row,) = re.findall(rf"^\| {name}: .*", table, re.MULTILINE)
    assert row.split(" | ")[1:] == [cell, "- |"]
    assert len(table.splitlines()) == 2 + len(ROWS)


def test_every_question_counts_in_a_row() -> None:
    for index in range(20):
        for question in questions(evaluation_scene(index)):
            scorecard = Scorecard()
            measures = score_answer(question.truth, question, ImageSize(192, 192))
            scorecard.add(question.name, measures)
            values = set[float | None]()
            for name, row in ROWS.items():
                values |= {scorecard.pooled(name, measure) for measure in row}
            assert values == {None, 1.0}, question.name
    assert {name.partition(" ")[0] for name in ROWS} == set(TASKS)
