from typing import Any

from laboratory.evaluation.consensus import best, tally

PLACE = (0.0, 0.0, 10.0, 10.0)


def box(label: str, score: float = 1.0) -> dict[str, Any]:
    return {"box": PLACE, "label": label, "score": score}


def test_precision_and_coverage_are_of_all_images() -> None:
    truth = {"a": [box("star")], "b": [box("circle")], "c": []}
    found = tally({"a": [box("star")], "b": [], "c": [box("star")]}, truth)
    assert (found.precision, found.recall) == (0.5, 0.5)


def test_the_best_boxes_are_those_with_the_highest_scores() -> None:
    boxes = {"a": [box("star", 0.5), box("star", 0.9)], "b": [box("circle", 0.7)]}
    assert best(boxes, 2) == {"a": [box("star", 0.9)], "b": [box("circle", 0.7)]}
