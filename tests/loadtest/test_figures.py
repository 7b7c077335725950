import math

import pytest

from loadtest.figures import percentile, shown, table


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 50, 3.0),
        ([3.0], 99, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 51, 3.0),
        ([float(value) for value in range(1, 101)], 95, 95.0),
        ([float(value) for value in range(1, 21)], 95, 19.0),
        ([1.0, 2.0], 0, 1.0),
    ],
)
def test_a_percentile_is_a_value_by_nearest_rank(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def test_no_values_have_no_percentile() -> None:
    assert math.isnan(percentile([], 95))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (1234.5, "1234"),
        (12.34, "12.3"),
        (0.01234, "0.0123"),
        (float("nan"), "-"),
        (-2.5, "-2.50"),
    ],
)
def test_three_significant_digits_are_shown(value: float, expected: str) -> None:
    assert shown(value) == expected


def test_columns_after_the_first_are_right_aligned() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---:|\n| 1 | 2 |"
