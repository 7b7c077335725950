"""Pooling of hand-made tallies to task-level measures, and the tables' cells."""

import pytest

from export.scenes import Scorecard, Tally, questions, score_answer
from export.scenes.scoring import Measure
from laboratory.evaluation import (
    Evaluation,
    accuracy_table,
    evaluation_scene,
    question_table,
    robustness_table,
    task_accuracy,
)
from laboratory.evaluation.accuracy_tables import TASK_MEASURES, TaskMeasure
from tasks.table import TASKS
from tests.support.true_results import true_result

SIZE_WH = (192, 192)
Tallies = dict[tuple[str, Measure], Tally]


def evaluation(tallies: Tallies) -> Evaluation:
    return Evaluation(Scorecard(tallies), {})


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
            "one": evaluation(
                {("captioning short", "exact"): Tally(1, 2, 2), ("ocr", "exact"): Tally(1, 1, 1)}
            ),
            "other": evaluation({("captioning short", "exact"): Tally(2, 2, 2)}),
        }
    )
    assert table.splitlines()[:3] == [
        "| measure | one | other |",
        "|---|---|---|",
        "| captioning, exact: short / detailed | 0.50 / - | 1.00 / - |",
    ]
    assert cells(table, "ocr, exact")[1:] == ["1.00 / -", "-"]
    assert len(table.splitlines()) == 2 + len(TASK_MEASURES)


def test_no_confident_box_is_no_precision() -> None:
    tallies: Tallies = {
        ("object_detection", "confident_at_50"): Tally(),
        ("object_detection", "confident"): Tally(0, 5, 5),
    }
    assert cells(accuracy_table({"one": evaluation(tallies)}), "boxes with")[1] == "- / 0.00"


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
        {"one": evaluation({("visual_question_answering count", "exact"): tally})}
    )
    assert cells(table, "visual_question_answering")[1] == shown


def test_loss_is_in_points_against_the_first_condition() -> None:
    def boxes(num_at_50: int, num_at_75: int) -> dict[str, Evaluation]:
        tallies: Tallies = {
            ("region_proposal", "f1_at_50"): Tally(num_at_50, 1000, 1000),
            ("region_proposal", "f1_at_75"): Tally(num_at_75, 1000, 1000),
        }
        return {"one": evaluation(tallies)}

    table = robustness_table(
        {"plain": boxes(980, 950), "small": boxes(949, 955), "jpeg": boxes(980, 0)}
    )
    header, rule, row = table.splitlines()
    assert header == "| model | measure | plain | small (points lost) | jpeg (points lost) |"
    assert rule == "|---|---|---|---|---|"
    assert cells(row, "one")[1:] == [
        "region_proposal, F1 at IoU: 0.5 / 0.75",
        "0.98 / 0.95",
        "0.94 / 0.95 (3.1 / -0.5)",
        "0.98 / 0.00 (0.0 / 95.0)",
    ]


def test_each_model_is_compared_with_itself() -> None:
    def readings(**right: int) -> dict[str, Evaluation]:
        return {
            model: evaluation({("ocr", "exact"): Tally(n, 10, 10)}) for model, n in right.items()
        }

    table = robustness_table(
        {"plain": readings(one=10, other=5), "small": readings(one=9, other=5)}
    )
    assert cells(table, "one")[2:] == ["1.00 / -", "0.90 / - (10.0 / -)"]
    assert cells(table, "other")[2:] == ["0.50 / -", "0.50 / - (0.0 / -)"]


def test_questions_are_listed_with_median_and_95th_percentile() -> None:
    scorecard = Scorecard({("ocr", "exact"): Tally(1, 2, 2), ("ocr", "empty"): Tally(1, 1, 1)})
    latencies_ms = [float(value) for value in range(1, 101)]
    table = question_table(
        {"one": Evaluation(scorecard, {"ocr": latencies_ms}), "other": evaluation({})}
    )
    assert table.splitlines() == [
        "| question | one | p50 / p95 ms | other | p50 / p95 ms |",
        "|---|---|---|---|---|",
        "| ocr | exact 0.50, empty 1.00 | 50 / 96 |  |  |",
    ]


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
