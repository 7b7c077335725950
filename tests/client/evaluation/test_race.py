"""The better of two models, at any stopping time."""

import numpy as np
import pytest

from diptych_client.evaluation.race import decide

NUM_LOOKS = 12


def first_verdict(first: list[float], second: list[float], margin: float | None) -> str | None:
    """Return the first decision over growing numbers of images."""
    errors = list(zip(first, second, strict=True))
    for look in range(1, NUM_LOOKS + 1):
        decision = decide(errors[: len(errors) * look // NUM_LOOKS], margin)
        if decision is not None:
            return decision.verdict
    return None


def test_equal_models_are_rarely_told_apart_however_often_one_looks() -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        first, second = (rng.random((2, 120)) < 0.3).astype(float).tolist()
        verdicts.append(first_verdict(first, second, None))
    assert len([each for each in verdicts if each is not None]) <= 0.05 * len(verdicts)


@pytest.mark.long
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_of_a_thousand_pairs_of_equal_models_few_are_told_apart(rate: float) -> None:
    """Look after every 5 of 600 images."""
    rng = np.random.default_rng(1)
    num_told_apart = 0
    for _ in range(1000):
        first, second = (rng.random((2, 600)) < rate).astype(float).tolist()
        errors = list(zip(first, second, strict=True))
        looks = (decide(errors[:num], None) for num in range(5, 601, 5))
        num_told_apart += any(look is not None for look in looks)
    print(f"error {rate}: {num_told_apart} of 1000 told apart")
    assert num_told_apart <= 50


@pytest.mark.parametrize(("better", "other"), [("first", "second"), ("second", "first")])
def test_the_better_model_is_found_early(better: str, other: str) -> None:
    rng = np.random.default_rng(0)
    errors = {
        better: (rng.random(400) < 0.1).astype(float).tolist(),
        other: (rng.random(400) < 0.4).astype(float).tolist(),
    }
    decision = decide(list(zip(errors["first"], errors["second"], strict=True))[:150], None)
    assert decision is not None
    assert decision.verdict == better


def test_models_that_differ_less_than_the_margin_are_equal_only_if_it_is_asked() -> None:
    errors = [(0.2, 0.2)] * 500
    assert decide(errors, None) is None
    decision = decide(errors, 0.02)
    assert decision is not None
    assert (decision.verdict, decision.difference) == ("equal", 0)
    assert decide(errors[:50], 0.02) is None


def test_models_that_differ_by_the_margin_are_not_called_equal() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(500) < 0.5).astype(float)
    errors = [(each, max(each - 0.02, 0.0)) for each in first.tolist()]
    decision = decide(errors, 0.01)
    assert decision is None or decision.verdict == "second"
