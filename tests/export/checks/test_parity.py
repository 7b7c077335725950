import numpy as np
import pytest

from export.checks.parity import compare_features, compare_tokens, first_difference
from export.checks.reference import GreedyAnswer
from export.errors import ParityError

FEATURES = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


def reference_answer(token_ids: list[int], gap: float = 9.0) -> GreedyAnswer:
    """An answer whose tokens have logits `gap` above those of tokens 0 to 7."""
    others = dict.fromkeys(range(8), 0.0)
    return GreedyAnswer(tuple(token_ids), tuple(others | {token_id: gap} for token_id in token_ids))


def test_equal_features_pass() -> None:
    measured = compare_features(FEATURES, FEATURES)
    assert measured.num_images == 2
    assert measured.min_cosine == pytest.approx(1)
    assert measured.max_abs_error == 0


@pytest.mark.parametrize(
    "features",
    [
        FEATURES + 0.02,  # off by more than rounding
        FEATURES * 1.01,  # right direction, wrong length
        np.full_like(FEATURES, np.nan),
        FEATURES[:, :2],
    ],
    ids=["shifted", "scaled", "not numbers", "token missing"],
)
def test_different_features_fail(features: np.ndarray) -> None:
    with pytest.raises(ParityError):
        compare_features(features, FEATURES)


def test_nan_features_fail_even_if_the_reference_is_nan() -> None:
    nothing = np.full_like(FEATURES, np.nan)
    with pytest.raises(ParityError):
        compare_features(nothing, nothing)


@pytest.mark.parametrize(
    ("answer", "expected", "step"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [1, 5, 3], 1),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 2),
        ([], [], None),
    ],
)
def test_first_difference(answer: list[int], expected: list[int], step: int | None) -> None:
    assert first_difference(answer, expected) == step


def test_equal_tokens_pass() -> None:
    measured = compare_tokens([(1, 2), (3,)], [reference_answer([1, 2]), reference_answer([3])])
    assert (measured.num_prompts, measured.num_tokens, measured.num_near_ties) == (2, 3, 0)


@pytest.mark.parametrize(("gap", "passes"), [(0.0009, True), (0.0011, False)])
def test_tokens_may_differ_at_a_near_tie_only(gap: float, passes: bool) -> None:
    expected = [reference_answer([1, 2, 3], gap)]
    if passes:
        assert compare_tokens([(1, 7, 3)], expected).num_near_ties == 1
    else:
        with pytest.raises(ParityError, match="from token 1 on"):
            compare_tokens([(1, 7, 3)], expected)


def test_token_that_is_not_among_the_largest_logits_is_no_near_tie() -> None:
    with pytest.raises(ParityError, match="from token 1 on"):
        compare_tokens([(1, 9, 3)], [reference_answer([1, 2, 3], gap=0.0)])


@pytest.mark.parametrize("answer", [(1, 2), (1, 2, 3, 4)], ids=["shorter", "longer"])
def test_near_tie_does_not_excuse_another_length(answer: tuple[int, ...]) -> None:
    with pytest.raises(ParityError):
        compare_tokens([answer], [reference_answer([1, 2, 3], gap=0.0)])
