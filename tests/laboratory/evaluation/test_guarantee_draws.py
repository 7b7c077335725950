"""Promises are kept in populations that tempt to break them, and a bug in the bound is noticed."""

from dataclasses import replace

import numpy as np
import pytest

from diptych_client.annotate.guarantee import (
    Flags,
    Promise,
    Proved,
    Rule,
    Scored,
    candidates,
    decide,
)
from diptych_client.annotate.judging import Judged
from laboratory.evaluation.guarantee_draws import Draws, Outcome, Population, choices, simulate

PROMISE = Promise(0.05, 0.95)
DRAWS = Draws(num_draws=300, num_labelled=80, num_unlabelled=40, num_test=40)
NUM_IMAGES = 500
NUM_LABELS = 8


def all_or_nothing(share_wrong: float) -> Population:
    """Return images whose labels are all right or all wrong, with scores that tell nothing."""
    rng = np.random.default_rng(1)
    num_wrong = round(share_wrong * NUM_IMAGES)
    images = []
    for number in range(NUM_IMAGES):
        is_right = (number >= num_wrong,) * NUM_LABELS
        images.append(Judged(tuple(rng.random(NUM_LABELS).tolist()), is_right))
    return Population(images)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """The outcomes where a little more than the promised share is wrong."""
    chosen = choices(PROMISE) | {"by label": by_label}
    return simulate(all_or_nothing(0.052), chosen, PROMISE.max_share, DRAWS)


def test_a_share_that_is_exceeded_is_rarely_proved(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["proved"].num_broken <= 0.05 * DRAWS.num_draws


def test_a_bound_that_takes_labels_for_independent_is_found_out(
    outcomes: dict[str, Outcome],
) -> None:
    assert outcomes["by label"].broken_interval()[0] > 0.05


def test_the_precision_seen_on_the_labelled_images_breaks_the_promise(
    outcomes: dict[str, Outcome],
) -> None:
    assert outcomes["precision seen"].broken_interval()[0] > 0.05


def test_a_share_that_is_far_below_is_proved() -> None:
    draws = replace(DRAWS, num_draws=10, num_labelled=120)
    outcome = simulate(all_or_nothing(0.0), choices(PROMISE), PROMISE.max_share, draws)["proved"]
    assert outcome.num_chosen == draws.num_draws
    assert outcome.coverage > 0.9


def by_label(labels: Scored, is_right: Flags, unlabelled: Scored) -> Rule | None:
    """Choose by a planted bug: every label counts as an image."""
    found = decide(each_alone(labels), is_right, candidates(each_alone(unlabelled)), PROMISE)
    return None if not isinstance(found, Proved) else replace(found.rule, max_labels=NUM_LABELS)


def each_alone(labels: Scored) -> Scored:
    num_labels = len(labels.scores)
    return Scored(num_labels, np.arange(num_labels), labels.scores)
