"""Texts: each metric on small cases."""

from collections.abc import Sequence

import numpy as np
import pytest

from diptych_client.tools.questions import TextsTruth
from diptych_client.tools.texts import (
    TextsMeasure,
    anls,
    cider_scores,
    vqa_accuracy,
    vqa_normalized,
)
from tests.support.evaluations import prediction

CAPTIONS = [
    "a red circle and a blue square",
    "a star",
    "two green triangles with text on a dark background",
    "nothing",
]
REFERENCES = [
    ["a red circle and a blue square", "a blue square beside a red circle"],
    ["a yellow star", "one star on white"],
    ["two green triangles with text", "a dark background with two triangles"],
    ["a purple circle", "an orange star with text"],
]


def test_cider_is_that_of_pycocoevalcap() -> None:
    """The scores were printed by CiderScorer of pycocoevalcap 1.2 for the same texts."""
    np.testing.assert_allclose(
        cider_scores(CAPTIONS, REFERENCES), [7.28921569, 0.87925898, 4.10466577, 0], atol=1e-8
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("two dogs.", "2 dogs"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("don't", "dont"),
        ("a/b", "b"),
    ],
)
def test_answers_are_compared_as_in_vqa(text: str, expected: str) -> None:
    assert vqa_normalized(text) == expected


@pytest.mark.parametrize(
    ("accepted", "accuracy"),
    [
        (["yes"] * 10, 1),
        (["no"] * 10, 0),
        (["yes"] + ["no"] * 9, 0.3),  # nine of ten subsets have one "yes"
        (["yes"] * 2 + ["no"] * 8, 0.6),
        (["yes"] * 3 + ["no"] * 7, 0.9),
        (["yes"] * 4 + ["no"] * 6, 1),
        (["Yes!"], 1),
    ],
)
def test_vqa_accuracy_is_the_mean_over_nine_annotators(
    accepted: Sequence[str], accuracy: float
) -> None:
    assert vqa_accuracy("yes", accepted) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "accepted", "score"),
    [
        ("Coke", ["coke"], 1),
        ("coka", ["coke"], 0.75),
        ("abcd", ["abxy"], 0),
        ("a", [], 0),
        ("x", ["longer", "x"], 1),
    ],
)
def test_anls_is_0_from_half_of_the_characters(
    answer: str, accepted: Sequence[str], score: float
) -> None:
    assert anls(answer, accepted) == pytest.approx(score)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("captioning", ["CIDEr", "exact"]),
        ("ocr", ["CER", "WER", "exact"]),
        ("visual_question_answering", ["VQA accuracy", "ANLS", "exact"]),
    ],
)
def test_the_metrics_depend_on_the_task(task: str, names: Sequence[str]) -> None:
    measure = TextsMeasure(task)
    measure.add(TextsTruth(("one  two",)), prediction(text="one two"))
    measure.add(TextsTruth(("ab", "xy")), prediction(text="xz"))
    metrics = measure.metrics()
    assert [metric.name for metric in metrics] == names
    assert metrics[-1].value(np.ones(2)) == 0.5


def test_rate_is_all_edits_over_all_lengths() -> None:
    measure = TextsMeasure("ocr")
    measure.add(TextsTruth(("a b",)), prediction(text="b"))
    measure.add(TextsTruth(("x", "1234 67")), prediction(text="1234 68"))
    characters, words, _ = measure.metrics()
    assert characters.value(np.ones(2)) == pytest.approx(3 / 10)
    assert words.value(np.ones(2)) == pytest.approx(2 / 4)
