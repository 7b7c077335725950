"""Calibration of scores: the fit, its error, and its file as the service reads it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from diptych_client.evaluation.objects import (
    MIN_ANSWERS,
    CalibrationGap,
    ObjectsMeasure,
    ScoredAnswers,
    calibration_document,
    fit_calibration,
    isotonic,
    min_object_share,
)
from diptych_client.evaluation.questions import ClassNames, ObjectsTruth
from diptych_client.long_runs import RunError
from diptych_client.matching import Floats
from tasks.scores import read_calibrations
from tests.support.evaluations import detection, prediction, truth

TASK = "object_detection"


def answers(scores: Floats, is_right: ArrayLike, is_calibrated: bool = False) -> ScoredAnswers:
    samples = np.arange(len(scores))
    return ScoredAnswers(
        np.asarray(scores, dtype=float), np.asarray(is_right, dtype=bool), samples, is_calibrated
    )


def overconfident(num_answers: int, seed: int) -> ScoredAnswers:
    """Return answers that are right with the square of their score."""
    rng = np.random.default_rng(seed)
    scores = rng.random(num_answers)
    return answers(scores, rng.random(num_answers) < scores**2)


def test_violators_are_pooled() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    is_right = np.array([False, True, False, False, True, True])
    assert isotonic(scores, is_right) == ((0.1, 0.2, 0.4, 0.5, 0.6), (0, 1 / 3, 1 / 3, 1, 1))


def test_equal_scores_have_one_probability() -> None:
    assert isotonic(np.array([0.5, 0.5, 0.5, 0.9]), np.array([True, False, False, True])) == (
        (0.5, 0.9),
        (1 / 3, 1),
    )


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60))
def test_the_fit_is_the_best_non_decreasing_one(pairs: list[tuple[int, bool]]) -> None:
    """By the min-max formula (Barlow et al., 1972, theorem 1.4)."""
    scores = np.array([score / 20 for score, _ in pairs])
    is_right = np.array([right for _, right in pairs])
    xs, ys = isotonic(scores, is_right)
    levels = np.unique(scores)
    for level in levels:
        minima = []
        for low in levels[levels <= level]:
            ranges = [(scores >= low) & (scores <= high) for high in levels[levels >= level]]
            minima.append(min(is_right[each].mean() for each in ranges))
        assert np.interp(level, xs, ys) == pytest.approx(max(minima))


def test_the_calibration_error_is_the_mean_distance_of_score_and_share_of_right_answers() -> None:
    gap = CalibrationGap(answers(np.array([0.9, 0.9, 0.1, 0.1]), [True, False, False, False]))
    assert gap.value(np.ones(4)) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert gap.value(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.1)
    assert np.isnan(gap.value(np.zeros(4)))


def test_a_score_of_one_is_in_the_last_bin() -> None:
    assert CalibrationGap(answers(np.array([1.0]), [True])).value(np.ones(1)) == 0


def test_the_smallest_object_is_the_one_from_which_on_nearly_as_many_are_found() -> None:
    shares = np.linspace(0.001, 1, 1000)
    are_found = (shares > 0.1) | (np.arange(1000) % 2 == 0)
    assert min_object_share(shares, are_found) == pytest.approx(0.1, abs=0.003)
    half_found = np.arange(1000) % 2 == 0
    assert min_object_share(shares, half_found & (shares > 0.2)) == pytest.approx(0.2, abs=0.003)


@pytest.mark.parametrize("are_found", [np.ones(1000), np.zeros(1000), np.ones(199)])
def test_the_smallest_object_is_unknown_without_missed_and_found_ones(are_found: Floats) -> None:
    shares = np.linspace(0.001, 1, len(are_found))
    assert min_object_share(shares, are_found.astype(bool)) is None


def test_the_file_calibrates_unseen_answers_in_the_service(tmp_path: Path) -> None:
    answered = overconfident(4000, seed=0)
    shares = np.linspace(0.001, 1, 1000)
    answered = replace(answered, shares=shares, are_found=shares > 0.1)
    fitted = [
        fit_calibration("m", "c", TASK, answered),
        fit_calibration("m", "c", TASK, answered, with_tiles=True),
    ]
    (tmp_path / "c.json").write_text(calibration_document(fitted))
    calibration, tiled = read_calibrations(tmp_path / "c.json")
    assert (calibration.with_tiles, tiled.with_tiles) == (False, True)
    assert calibration.min_object_share == pytest.approx(0.1, abs=0.002)
    assert tiled.min_object_share is None
    unseen = overconfident(4000, seed=1)
    calibrated = answers(
        np.array([calibration.probability(score) for score in unseen.scores]), unseen.is_right
    )
    before, after = (CalibrationGap(each).value(np.ones(4000)) for each in (unseen, calibrated))
    assert before > 0.15
    assert after < 0.03


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (None, "needs a task and a dataset with objects"),
        (
            overconfident(MIN_ANSWERS - 1, 0),
            f"needs {MIN_ANSWERS} answered objects; m answered {MIN_ANSWERS - 1}",
        ),
        (
            answers(np.ones(MIN_ANSWERS), np.ones(MIN_ANSWERS), is_calibrated=True),
            "DIPTYCH_CALIBRATION=off",
        ),
    ],
)
def test_answers_that_cannot_be_calibrated_are_refused(
    scored: ScoredAnswers | None, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        fit_calibration("m", "c", TASK, scored)


def test_an_object_is_right_with_its_label_and_half_of_its_area() -> None:
    measure = ObjectsMeasure(ClassNames(("car", "dog"), {"car": "car", "dog": "dog"}))
    boxes = [
        detection("car", (10, 10, 40, 30), 0.9),
        detection("dog", (10, 10, 40, 30), 0.8),
        detection("car", (30, 10, 60, 30), 0.7),
    ]
    measure.add(ObjectsTruth((truth("car", (10, 10, 40, 30)),)), prediction(boxes))
    measure.add(ObjectsTruth(()), prediction([detection("car", (0, 0, 5, 5), 0.6)]))
    scored = measure.scored()
    assert scored.shares == pytest.approx([(0.3 * 0.25) ** 0.5])
    assert scored.are_found.tolist() == [True]
    found = zip(
        scored.scores.tolist(), scored.is_right.tolist(), scored.samples.tolist(), strict=True
    )
    assert sorted(found, reverse=True) == [
        (0.9, True, 0),
        (0.8, False, 0),
        (0.7, False, 0),
        (0.6, False, 1),
    ]
