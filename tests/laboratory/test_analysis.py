"""The comparison of an analysis with single calls: shares of each image, and differing tokens."""

from laboratory.analysis import Way, differences, report


def test_the_shares_are_medians_over_the_images() -> None:
    ways = {
        "analysis": Way([0.1, 0.2, 0.3], [100, 100, 100]),
        "sequence": Way([1.0, 1.0, 1.0], [2500, 2500, 2500]),
        "concurrent": Way([0.5, 0.4, 0.3], [2500, 2500, 2500]),
    }
    header, _, *rows = report(ways).splitlines()
    assert header == "| way | wall p50, ms | analysis ÷ it | bytes sent, analysis ÷ it |"
    assert rows == [
        "| analysis | 200 | 1.00 | 1.00 |",
        "| sequence | 1000 | 0.200 | 0.0400 |",
        "| concurrent | 400 | 0.500 | 0.0400 |",
    ]


def test_a_missing_or_another_answer_differs() -> None:
    right = {"text 0": ("one", 3), "text 1": ("two", 3)}
    found = {"sequence": right, "concurrent": right, "analysis": {"text 0": ("one", 4)}}
    assert differences(7, found) == [
        "image 7, text 0, analysis: ('one', 4) instead of ('one', 3)",
        "image 7, text 1, analysis: None instead of ('two', 3)",
    ]
