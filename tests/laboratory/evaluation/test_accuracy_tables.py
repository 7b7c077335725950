"""Pooling of hand-made tallies to task-level measures, and the tables' cells."""

import pytest

from export.scenes import Scorecard, Tally, questions, score_answer
from export.scenes.scoring import Measure
from laboratory.evaluation import accuracy_table, evaluation_scene, task_accuracy
from laboratory.evaluation.accuracy_tables import TASK_MEASURES, TaskMeasure
from tasks.table import TASKS
from tests.support.true_results import true_result

SIZE_WH = (192, 192)
Tallies = dict[tuple[str, Measure], Tally]


def task_measure(start: str) -> TaskMeasure:
    (found,) = (each for each in TASK_MEASURES if each.title.startswith(start))
    return found


def cells(table: str, start: str) -> list[str]:
    (row,) = (row for row in table.splitlines() if row.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize(
    ("start", "tallies", "values"),
    [
        (
            "open_vocabulary_detection",
            {
                ("open_vocabulary_detection shape", "f1_at_50"): Tally(8, 10, 10),
                ("open_vocabulary_detection several", "f1_at_50"): Tally(1, 2, 8),
                ("open_vocabulary_detection shape", "f1_at_75"): Tally(3, 10, 10),
                ("open_vocabulary_detection absent", "empty"): Tally(0, 1, 1),
            },
            (0.6, 0.3),
        ),
        (
            "instance_segmentation",
            {
                ("instance_segmentation phrase", "mask_iou"): Tally(2.7, 3, 3),
                ("instance_segmentation region", "mask_iou"): Tally(0.5, 1, 1),
            },
            (0.8,),
        ),
        (
            "visual_question_answering",
            {
                ("visual_question_answering color", "exact"): Tally(1, 2, 2),
                ("visual_question_answering count", "exact"): Tally(6, 6, 6),
            },
            (7 / 8,),
        ),
        (
            "captioning",
            {
                ("captioning short", "exact"): Tally(3, 4, 4),
                ("captioning detailed", "exact"): Tally(1, 4, 4),
                ("dense_region_captioning", "exact"): Tally(0, 9, 9),
            },
            (0.75, 0.25),
        ),
        (
            "ocr, ",
            {
                ("ocr", "exact"): Tally(9, 10, 10),
                ("ocr", "exact_if_any"): Tally(4, 5, 5),
                ("ocr_with_regions", "exact"): Tally(0, 10, 10),
            },
            (0.9, 0.8),
        ),
        (
            "no object",
            {
                ("object_detection", "empty"): Tally(1, 2, 2),
                ("open_vocabulary_detection no object", "empty"): Tally(2, 2, 2),
                ("open_vocabulary_detection absent", "empty"): Tally(0, 9, 9),
                ("ocr", "empty"): Tally(0, 9, 9),
            },
            (0.75,),
        ),
        ("absent label", {("open_vocabulary_detection absent", "empty"): Tally(3, 4, 4)}, (0.75,)),
        (
            "boxes with score ≥ 0.8",
            {
                ("object_detection", "confident_at_50"): Tally(3, 3, 3),
                ("phrase_grounding caption", "confident_at_50"): Tally(0, 1, 1),
                ("object_detection", "confident"): Tally(4, 10, 10),
            },
            (0.75, 0.4),
        ),
    ],
)
def test_variants_of_a_task_are_pooled(
    start: str, tallies: Tallies, values: tuple[float, ...]
) -> None:
    assert task_measure(start).values(Scorecard(tallies)) == pytest.approx(values)


def test_every_question_counts_in_a_measure() -> None:
    asked = {
        question.name: question
        for index in range(20)
        for question in questions(evaluation_scene(index))
    }
    for question in asked.values():
        scorecard = score_answer(true_result(question.truth), question, SIZE_WH)
        values = {value for each in TASK_MEASURES for value in each.values(scorecard)}
        assert values == {None, 1.0}, question.name


def test_row_has_the_values_of_each_model_and_a_dash_without_questions() -> None:
    table = accuracy_table(
        {
            "one": Scorecard(
                {("captioning short", "exact"): Tally(1, 2, 2), ("ocr", "exact"): Tally(1, 1, 1)}
            ),
            "other": Scorecard({("captioning short", "exact"): Tally(2, 2, 2)}),
        }
    )
    assert table.splitlines()[:3] == [
        "| measure | one | other |",
        "|---|---:|---:|",
        "| captioning, exact: short / detailed | 0.50 / - | 1.00 / - |",
    ]
    assert cells(table, "ocr, exact")[1:] == ["1.00 / -", "-"]
    assert len(table.splitlines()) == 2 + len(TASK_MEASURES)


def test_no_confident_box_is_no_precision() -> None:
    tallies: Tallies = {
        ("object_detection", "confident_at_50"): Tally(),
        ("object_detection", "confident"): Tally(0, 5, 5),
    }
    assert cells(accuracy_table({"one": Scorecard(tallies)}), "boxes with")[1] == "- / 0.00"


@pytest.mark.parametrize(
    ("tally", "shown"),
    [
        (Tally(9499, 10_000, 10_000), "0.94"),
        (Tally(95, 100, 100), "0.95"),
        (Tally(29, 100, 100), "0.29"),
    ],
)
def test_shown_values_are_rounded_down(tally: Tally, shown: str) -> None:
    table = accuracy_table(
        {"one": Scorecard({("visual_question_answering count", "exact"): tally})}
    )
    assert cells(table, "visual_question_answering")[1] == shown


def test_task_accuracy_has_the_numbers_of_task_rows_only() -> None:
    scorecard = Scorecard(
        {
            ("captioning short", "exact"): Tally(3, 4, 4),
            ("ocr", "exact"): Tally(1, 2, 2),
            ("ocr", "empty"): Tally(1, 1, 1),  # "no word: no text" is of no task
        }
    )
    assert task_accuracy(scorecard) == {
        "captioning, exact: short": 0.75,
        "ocr, exact: all images": 0.5,
    }


def test_every_task_has_a_row() -> None:
    titles = {row.title.partition(",")[0] for row in TASK_MEASURES}
    assert titles >= set(TASKS)
