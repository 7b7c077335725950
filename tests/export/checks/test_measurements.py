from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from export.checks.parity import compare, each_measured
from export.errors import ParityError
from export.pipeline import kept_defaults
from tests.support.catalog import FLORENCE
from wire.artifacts.manifest import Device, Part, Precision

ROWS = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def test_equal_rows_have_no_difference() -> None:
    measured = compare("a decoder", ROWS, ROWS)
    assert measured.mean_cosine == pytest.approx(1)
    assert measured.max_abs_error == 0
    assert measured.max_abs_float32 == float(ROWS.abs().max())


def test_comparison_row_by_row_equals_that_of_all_rows_at_once() -> None:
    rows = ROWS + 0.1 * torch.randn(ROWS.shape, generator=torch.Generator().manual_seed(1))
    at_once = compare("a decoder", [rows], [ROWS])
    by_row = compare("a decoder", iter(rows), iter(ROWS))
    assert asdict(by_row) == pytest.approx(asdict(at_once), abs=1e-6)
    assert by_row.mean_cosine == pytest.approx(
        float(torch.cosine_similarity(rows, ROWS, dim=-1).mean()), abs=1e-6
    )


def test_rows_that_are_missing_are_an_error() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        compare("a decoder", iter(ROWS[:3]), iter(ROWS))


def test_worst_row_and_largest_error_are_measured() -> None:
    rows = ROWS.clone()
    rows[2] += 0.1
    measured = compare("a decoder", rows, ROWS)
    assert measured.max_abs_error == pytest.approx(0.1, abs=1e-5)
    expected = torch.cosine_similarity(rows[2], ROWS[2], dim=0)
    assert measured.min_cosine == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    "rows", [-ROWS, ROWS.flip(-1), torch.full_like(ROWS, torch.nan)], ids=["-", "mixed up", "NaN"]
)
def test_unrelated_rows_fail(rows: torch.Tensor) -> None:
    with pytest.raises(ParityError, match="the int8 encoder differs from float32"):
        compare("the int8 encoder", rows, ROWS)


def broken(precision: Precision) -> dict[str, Any]:
    if precision == "int8":
        raise ParityError("the int8 encoder differs from float32")
    return {"mean_cosine": 1.0}


@pytest.mark.parametrize(
    ("defaults", "warning"),
    [
        ({}, "int8 is left out"),
        ({"cuda": "int8"}, "int8 is left out; the default on cuda is float32 instead"),
        (
            {"cpu": "int8", "cuda": "int8"},
            "int8 is left out; the default on cpu and cuda is float32 instead",
        ),
    ],
)
def test_broken_precision_is_left_out_with_a_warning(
    defaults: dict[Device, Precision], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    every: tuple[Precision, ...] = ("float32", "int8", "float16")
    named = {
        device: {**parts, "encoder": defaults.get(device, "float32")}
        for device, parts in FLORENCE.precision.items()
    }
    measured = dict(each_measured("encoder", replace(FLORENCE, precision=named), every, broken))
    assert measured == {"float16": {"mean_cosine": 1.0}}
    assert caplog.messages == [f"{FLORENCE.id}: the int8 encoder differs from float32; {warning}"]


def test_float32_replaces_a_default_that_was_left_out() -> None:
    defaults: dict[Device, dict[Part, Precision]] = {
        "cpu": {"encoder": "float32", "decoder": "int8"},
        "cuda": {"encoder": "float16", "decoder": "bfloat16"},
    }
    assert kept_defaults(
        defaults, {"encoder": {"int8": {}}, "decoder": {"int8": {}, "bfloat16": {}}}
    ) == {
        "cpu": {"encoder": "float32", "decoder": "int8"},
        "cuda": {"encoder": "float32", "decoder": "bfloat16"},
    }
