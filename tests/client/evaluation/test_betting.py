"""The wealth of a bettor, and the number of images that it takes."""

from itertools import product
from math import exp, log

import numpy as np
import pytest

from diptych_client.evaluation.statistics import log_wealth, num_images_needed

SHARE = 0.05
HIGHEST = np.array([1 - SHARE])
NUM_IMAGES = 6


def test_the_wealth_is_not_expected_to_grow_while_the_mean_is_zero() -> None:
    is_wrong = np.array(list(product((0, 1), repeat=NUM_IMAGES))).T  # a column for each outcome
    values = (1 - SHARE) * is_wrong - SHARE * (1 - is_wrong)
    num_wrong = is_wrong.sum(axis=0)
    probability = SHARE**num_wrong * (1 - SHARE) ** (NUM_IMAGES - num_wrong)
    wealth = np.exp(log_wealth(values, np.repeat(HIGHEST, values.shape[1])))
    assert probability @ wealth == pytest.approx(1)
    assert wealth[num_wrong == 0] > 1


def test_one_largest_value_does_not_ruin_the_bettor() -> None:
    (found,) = log_wealth(np.array([[1 - SHARE]]), HIGHEST)
    assert exp(found) == pytest.approx(0.3)


def test_a_value_above_its_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        log_wealth(np.array([[2.0], [-1.0]]), np.array([1.5]))


def test_the_number_of_images_needed_is_the_least_that_reaches_the_wealth() -> None:
    needed = num_images_needed(np.full(10, -SHARE), 1 - SHARE, 0.05)
    assert needed is not None
    for num_images, is_enough in ((needed, True), (needed - 1, False)):
        (found,) = log_wealth(np.full((num_images, 1), -SHARE), HIGHEST)
        assert (found >= log(20)) == is_enough


def test_images_of_the_promised_share_never_suffice() -> None:
    values = np.array([1 - SHARE] + [-SHARE] * 19)
    assert num_images_needed(values, 1 - SHARE, 0.05) is None
