"""Plots as SVG: each number is at its place and each series has its name."""

import math
import re

from diptych_client.evaluation.metrics.outcome import Curve
from diptych_client.evaluation.report.plots import Line, interval_plot, line_plot
from diptych_client.evaluation.statistics import Interval

MODELS = ("first-model", "second-model")
FOUND = {
    "first-model": {
        "mAP": Interval(50, 40, 60),
        "AP50": Interval(70, 65, 80),
        "AP75": Interval(45, 42, 48),
    },
    "second-model": {
        "mAP": Interval(55, 50, 61),
        "AP50": Interval(72, 70, 79),
        "AP75": Interval(47, 44, 50),
    },
}


def dots(svg: str) -> list[tuple[float, float]]:
    """Return the places of the values; the circles of the key come last and are left out."""
    found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="3" fill="var', svg)
    return [(float(x), float(y)) for x, y in found][: -len(MODELS)]


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_axis_has_the_tens_around_all_intervals_and_each_metric_its_name() -> None:
    expected = ["40", "50", "60", "70", "80", "mAP", "AP50", "AP75"]
    assert texts(interval_plot("Metrics", FOUND)) == expected


def test_the_rows_of_the_metrics_have_the_same_distance() -> None:
    found = dots(interval_plot("Metrics", FOUND))
    assert [y for _, y in found] == [14, 28, 56, 70, 98, 112]
    first, second = (x for x, _ in found[:2])
    assert second > first


def test_the_name_of_a_metric_is_in_the_middle_of_its_dots() -> None:
    svg = interval_plot("Metrics", FOUND)
    ys = [y for _, y in dots(svg)]
    names = re.findall(r'y="([\d.]+)" text-anchor="end"', svg)
    middles = [(first + second) / 2 for first, second in zip(ys[::2], ys[1::2], strict=True)]
    assert [float(y) - 4 for y in names] == middles  # letters are 8 high


def test_a_metric_without_a_value_has_no_dot() -> None:
    nothing = Interval(math.nan, math.nan, math.nan)
    svg = interval_plot("Metrics", {model: FOUND[model] | {"mAP": nothing} for model in MODELS})
    assert len(dots(svg)) == 4
    assert "nan" not in svg


def test_a_line_from_0_to_1_connects_the_corners_of_the_grid() -> None:
    svg = line_plot("Recall", "x", "y", [Line("model", Curve((0, 1), (0, 1)), 0)])
    columns = re.findall(r'class="grid" d="M([\d.]+) ([\d.]+)V([\d.]+)', svg)
    left, top, bottom = map(float, columns[0])
    right = float(columns[-1][0])
    (drawn,) = re.findall(r'<path d="M([^"]+)" fill="none" [^>]*><title>model', svg)
    assert drawn == f"{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}"
