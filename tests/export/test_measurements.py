from dataclasses import replace
from typing import Any

import pytest
import torch

from export.errors import ParityError
from export.evaluation.measures import TASK_MEASURES, task_accuracy
from export.measurements import compare, each_measured
from export.scenes import Scorecard, Tally
from runners.artifacts.manifest import Precision
from tasks.table import TASKS
from tests.support.catalog import FLORENCE

ROWS = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def test_equal_rows_differ_by_nothing() -> None:
    measured = compare("a decoder", ROWS, ROWS)
    assert measured.mean_cosine == pytest.approx(1)
    assert measured.max_abs_error == 0
    assert measured.max_abs_float32 == float(ROWS.abs().max())


def test_the_worst_row_and_the_largest_error_are_told() -> None:
    rows = ROWS.clone()
    rows[2] += 0.1
    measured = compare("a decoder", rows, ROWS)
    assert measured.max_abs_error == pytest.approx(0.1, abs=1e-5)
    expected = torch.cosine_similarity(rows[2], ROWS[2], dim=0)
    assert measured.min_cosine == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("rows", [-ROWS, ROWS.flip(-1), torch.full_like(ROWS, torch.nan)], ids=["-", "mixed up", "NaN"])
def test_rows_that_have_little_to_do_with_float32_fail(rows: torch.Tensor) -> None:
    with pytest.raises(ParityError, match="the int8 encoder differs from float32"):
        compare("the int8 encoder", rows, ROWS)


def broken(precision: Precision) -> dict[str, Any]:
    if precision == "int8":
        raise ParityError("the int8 encoder differs from float32")
    return {"mean_cosine": 1.0}


def test_a_precision_that_breaks_the_model_is_not_offered_and_as_a_default_ends_the_export() -> None:
    every: tuple[Precision, ...] = ("float32", "int8", "float16")
    assert dict(each_measured("encoder", FLORENCE, every, broken)) == {"float16": {"mean_cosine": 1.0}}
    named = {device: {**parts, "encoder": "int8"} for device, parts in FLORENCE.precision.items()}
    with pytest.raises(ParityError, match=r"differs from float32; models/catalog\.yaml must not name it"):
        dict(each_measured("encoder", replace(FLORENCE, precision=named), every, broken))


def test_the_accuracy_of_tasks_has_every_number_of_their_rows_and_no_other() -> None:
    scorecard = Scorecard(
        {
            ("captioning short", "exact"): Tally(3, 4, 4),
            ("ocr", "exact"): Tally(1, 2, 2),
            ("ocr", "empty"): Tally(1, 1, 1),  # "no word: no text" is of no task
        }
    )
    assert task_accuracy(scorecard) == {"captioning, exact: short": 0.75, "ocr, exact: all images": 0.5}


def test_every_task_has_a_row() -> None:
    titles = {row.title.partition(",")[0] for row in TASK_MEASURES}
    assert titles >= set(TASKS)
