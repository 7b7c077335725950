import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from runners.tokens.choice import Choice, RowConditions, _draw_from_nucleus, choose_tokens

SIZE = 40
GREEDY = RowConditions()
SAMPLED = RowConditions(temperature=0.7, top_p=0.9, uniform=0.3)
NARROW = RowConditions(temperature=1.3, top_p=0.1, uniform=0.99)
UNLIMITED = RowConditions(temperature=1.3, uniform=0.8)
ALLOWED = np.packbits(np.arange(SIZE) % 3 == 0, bitorder="little")
CONSTRAINED = RowConditions(allowed=ALLOWED)
RULED = RowConditions(banned=(3, 4))
FORCED = RowConditions(forced=7)
BEAM = RowConditions(beam_score=-1.5, num_candidates=6)
EVERY = [GREEDY, SAMPLED, NARROW, UNLIMITED, CONSTRAINED, RULED, FORCED]


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that torch runs, but for views."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += func.overloadpacket is not torch.ops.aten.view
        return func(*args, **(kwargs or {}))


def logits_of(num_rows: int, size: int = SIZE) -> Tensor:
    return torch.randn(num_rows, size, generator=torch.Generator().manual_seed(num_rows)) * 3


def singles(logits: Tensor, conditions: Sequence[RowConditions]) -> list[Choice]:
    groups = [[row] for row in range(len(conditions))]
    return [choice for (choice,) in choose_tokens(logits, conditions, groups)]


def draw(probabilities: Tensor, top_p: float, num: int = 4000) -> Tensor:
    """Return the frequencies (V,) of `num` tokens, drawn at evenly spaced random numbers."""
    conditions = [
        RowConditions(temperature=1.0, top_p=top_p, uniform=(i + 0.5) / num) for i in range(num)
    ]
    drawn = [choice.token_id for choice in singles(probabilities.log().expand(num, -1), conditions)]
    return torch.bincount(torch.tensor(drawn), minlength=len(probabilities)) / num


def test_a_row_gets_the_same_token_alone_and_among_others() -> None:
    logits = logits_of(len(EVERY))
    together = singles(logits, EVERY)
    assert together == [singles(logits[row : row + 1], [one])[0] for row, one in enumerate(EVERY)]
    assert together[EVERY.index(CONSTRAINED)].token_id % 3 == 0
    assert together[EVERY.index(FORCED)] == Choice(0, 7, 0.0, 0.0)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (CONSTRAINED, True),
        (replace(CONSTRAINED, temperature=1.0, uniform=0.5), True),
        (replace(CONSTRAINED, banned=(4,)), False),  # it would not have been chosen anyway
        (RowConditions(allowed=~ALLOWED), False),
        (GREEDY, False),
        (FORCED, False),
    ],
)
def test_a_token_is_constrained_if_the_mask_forbids_the_preferred_one(
    conditions: RowConditions, expected: bool
) -> None:
    logits = torch.zeros(1, SIZE)
    logits[0, 4] = 9.0
    logits[0, 3] = 5.0
    (choice,) = singles(logits, [conditions])
    beam = replace(conditions, temperature=0.0, beam_score=-1.0, num_candidates=2)
    (searched,) = choose_tokens(logits, [beam], [[0]])
    assert choice.is_constrained == expected
    assert {choice.is_constrained for choice in searched} == {expected}


def test_tokens_beyond_a_shorter_mask_are_not_allowed() -> None:
    """A vocabulary may be padded beyond the tokenizer's."""
    logits = torch.arange(float(SIZE))[None]
    (choice,) = singles(logits, [RowConditions(allowed=np.full(4, 255, np.uint8))])
    assert (choice.token_id, choice.is_constrained) == (31, True)


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.05, 0.6, 0.0, 0.25, 0.1])
    assert draw(probabilities, 1.0).tolist() == pytest.approx(probabilities.tolist(), abs=0.001)
    nucleus = torch.tensor([0.0, 0.6, 0.0, 0.25, 0.0]) / 0.85
    assert draw(probabilities, 0.85).tolist() == pytest.approx(nucleus.tolist(), abs=0.001)


def test_a_flat_distribution_is_drawn_from_beyond_the_usual_nucleus() -> None:
    probabilities = torch.full((3000,), 1 / 3000) * torch.linspace(0.9, 1.1, 3000)
    drawn = draw(probabilities, 0.9, num=9000).nonzero().flatten()
    # the more probable nine tenths, which are fewer than nine tenths of the tokens
    assert 2600 < len(drawn) < 2720
    assert drawn.min() > 250


@pytest.mark.parametrize(
    ("top_p", "token_ids"),
    [
        (0.5, {0}),
        (0.501, {0, 1}),
        (0.75, {0, 1}),
        (0.751, {0, 1, 2}),
        (0.90625, {0, 1, 2}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_draws_from_the_fewest_tokens(top_p: float, token_ids: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15625, 0.09375])  # sums without rounding
    uniform = torch.linspace(0, 0.999, 50, dtype=torch.float64)[:, None]
    limits = torch.full_like(uniform, top_p)
    drawn, _ = _draw_from_nucleus(probabilities.expand(50, -1), limits, uniform, 4)
    assert set(drawn.flatten().tolist()) == token_ids


def test_the_largest_random_number_draws_a_possible_token() -> None:
    conditions = RowConditions(temperature=1.0, uniform=1 - 2**-53)
    (choice,) = singles(torch.tensor([[0.0, 0.0, -math.inf]]), [conditions])
    assert choice.token_id == 1


def test_a_row_without_an_allowed_token_has_log_probability_minus_infinity() -> None:
    nothing = np.zeros_like(ALLOWED)
    for temperature in (0.0, 1.0):
        (choice,) = singles(logits_of(1), [RowConditions(allowed=nothing, temperature=temperature)])
        assert choice.logprob == -math.inf


def test_beams_of_several_sequences_are_searched_as_each_alone() -> None:
    logits = logits_of(7)
    conditions = [BEAM, GREEDY, BEAM, BEAM, RULED, BEAM, BEAM]
    rows = [(0, 2), (1,), (3, 5, 6), (4,)]
    together = choose_tokens(logits, conditions, rows)
    for sequence, choices in zip(rows, together, strict=True):
        alone = choose_tokens(
            logits[list(sequence)], [conditions[row] for row in sequence], [range(len(sequence))]
        )
        assert choices == alone[0]
    assert [len(choices) for choices in together] == [6, 1, 6, 1]
    best = logits.log_softmax(-1)[[0, 2]].flatten().topk(6).values - 1.5
    assert [choice.score for choice in together[0]] == pytest.approx(best.tolist())


@pytest.mark.parametrize(
    "conditions",
    [[GREEDY], [SAMPLED], [CONSTRAINED], [RULED, FORCED], [BEAM] * 3],
    ids=lambda one: repr(one[0])[:40],
)
def test_the_number_of_operations_does_not_depend_on_the_number_of_rows(
    conditions: list[RowConditions],
) -> None:
    counts = []
    for num in (1, 7):
        width = len(conditions) if conditions[0].beam_score is not None else 1
        num_rows = num * len(conditions)
        rows = [range(first, first + width) for first in range(0, num_rows, width)]
        with Operations() as operations:
            choose_tokens(logits_of(num_rows), conditions * num, rows)
        counts.append(operations.names)
        # Top-p asks whether the usual nucleus is enough.
        assert operations.names["aten._local_scalar_dense.default"] <= (conditions[0].top_p < 1)
    assert counts[0] == counts[1]
    assert counts[0].total() <= 55
