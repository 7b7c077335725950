"""Rules by other images' answers, and the proof that labelled images give."""

import numpy as np
import pytest

from diptych_client.evaluation.annotation.guarantee import (
    Candidate,
    Promise,
    Proved,
    Rule,
    Scored,
    Unproved,
    accepted_shares,
    candidates,
    decide,
    decide_review,
    num_needed_at_best,
)

PROMISE = Promise(0.05, 0.95)
NOT_FOUND = float("-inf")


def test_an_image_with_more_labels_than_the_rule_allows_is_not_accepted() -> None:
    labels = Scored.of([[0.9, 0.8, 0.1], [0.9, 0.9, 0.9], []])
    is_right = np.array([True, False, True, True, True, True])
    found = accepted_shares(labels, is_right, Rule(0.5, 2))
    assert found.parts.tolist() == [1, 0, 0]
    assert found.wholes.tolist() == [2, 0, 0]
    assert found.share == 0.5


def test_the_rules_cover_more_and_more_and_at_last_all_labels() -> None:
    found = candidates(Scored.of([[0.1 * number] for number in range(10)]))
    confidences = [each.rule.min_confidence for each in found]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[-1] == 0  # the lowest
    assert sum(each.start for each in found) == pytest.approx(1)


@pytest.mark.parametrize(("pilot", "confidence"), [([], 0.0), ([[]], 0.0), ([[1.0]] * 5, 1.0)])
def test_a_pilot_without_different_scores_has_one_rule(
    pilot: list[list[float]], confidence: float
) -> None:
    (only,) = candidates(Scored.of(pilot))
    assert only == Candidate(Rule(confidence, 1), 1.0)


def test_the_rule_with_the_largest_proved_coverage_is_chosen() -> None:
    labels = Scored.of([[0.9], [0.8], [0.1]] * 100)
    is_right = np.array([True, True, False] * 100)
    tested = [Candidate(Rule(score, 1), start) for score, start in ((0.9, 0.5), (0.8, 0), (0, 0.5))]
    found = decide(labels, is_right, tested, PROMISE)
    assert found == Proved(PROMISE, Rule(0.8, 1), 0.0, 2 / 3, 300)


def test_a_rule_that_is_not_proved_passes_no_level_on() -> None:
    labels = Scored.of([[0.9], [0.1]] * 200)
    is_right = np.array([False, True] * 200)
    tested = [Candidate(Rule(0.9, 1), 1.0), Candidate(Rule(0.1, 1), 0.0)]
    found = decide(labels, is_right, tested, Promise(0.6, 0.95))
    assert isinstance(found, Unproved)


def test_one_image_too_few_proves_nothing_and_the_error_says_how_many_would() -> None:
    tested = [Candidate(Rule(0.0, 1), 1.0)]
    few = decide(Scored.of([[1.0]] * 40), np.ones(40, dtype=bool), tested, PROMISE)
    assert isinstance(few, Unproved)
    assert (few.promise, few.share, few.num_images) == (PROMISE, 0.0, 40)
    assert few.num_needed is not None
    for number, kind in ((few.num_needed, Proved), (few.num_needed - 1, Unproved)):
        right = np.ones(number, dtype=bool)
        assert isinstance(decide(Scored.of([[1.0]] * number), right, tested, PROMISE), kind)
    assert few.num_needed == num_needed_at_best(np.ones(40), PROMISE)
    crowd = num_needed_at_best(np.array([1.0] * 399 + [50.0]), PROMISE)
    assert crowd is not None
    assert few.num_needed <= crowd < 1.1 * few.num_needed  # its image is reviewed as a whole


def test_the_review_list_is_as_short_as_is_proved() -> None:
    objects = Scored.of([[0.9], [0.9], [0.5], [0.1]] * 100)
    found = decide_review(objects, 1, [0.0, 0.3, 0.6], Promise(0.4, 0.95))
    assert found == Proved(Promise(0.4, 0.95), Rule(0.3, 1), 0.25, 0.75, 400)


def test_a_review_list_of_all_boxes_that_misses_too_much_is_not_proved() -> None:
    objects = Scored.of([[NOT_FOUND], [0.9]] * 100)
    assert isinstance(decide_review(objects, 1, [0.0, 0.3], PROMISE), Unproved)


def test_an_exceeded_share_is_rarely_proved() -> None:
    """The labels of an image are wrong together: a bound that took them for independent fails."""
    num_labels = 8
    num_draws = 200
    rng = np.random.default_rng(1)
    num_proved = 0
    for _ in range(num_draws):
        labels = Scored.of(rng.random((80, num_labels)).tolist())
        is_right = np.repeat(rng.random(80) >= 0.052, num_labels)
        pilot = Scored.of(rng.random((40, num_labels)).tolist())
        if isinstance(decide(labels, is_right, candidates(pilot), PROMISE), Proved):
            num_proved += 1
    assert num_proved <= 0.05 * num_draws
