"""The choice of tokens, eager and in fixed shapes, over random logits and conditions."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any
from weakref import finalize

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runners.decoder.sequences import BeamSequence, SequenceRequest
from runners.tokens.choice import (
    CAPTURED_KINDS,
    MAX_BANNED,
    MAX_CANDIDATES,
    MAX_RESULTS,
    Choice,
    ChoiceKind,
    NextInputs,
    PackedConditions,
    RowConditions,
    _draw_from_nucleus,
    choice_bytes,
    choose,
    choose_tokens,
    fits,
    next_inputs,
    unpack,
    with_wider_nucleus,
)
from runners.tokens.text import Constraints, GenerationRules
from tests.support.fake_decoder import FAKE_TOKENIZER
from tests.support.token_choices import advance, conditions_of

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


def random_batch(
    random: Random, num_tokens: int, max_rows: int
) -> tuple[list[RowConditions], list[Sequence[int]]]:
    """Return conditions of up to `max_rows` rows, and the rows of each sequence: one, or several
    beams.
    """
    conditions: list[RowConditions] = []
    sequences: list[Sequence[int]] = []
    while not conditions or random.random() < 0.9:
        num_beams = random.choice([1, 1, 3, 4])
        if len(conditions) + num_beams > max_rows:
            break
        sequences.append(range(len(conditions), len(conditions) + num_beams))
        conditions += _conditions(random, num_tokens, num_beams)
    return conditions, sequences


def _conditions(random: Random, num_tokens: int, num_beams: int) -> list[RowConditions]:
    """Return the conditions on the rows of one sequence: of beams if there are several."""
    mask = np.random.default_rng(random.getrandbits(32)).random(num_tokens) < random.choice(
        [0.02, 0.5, 0.98]
    )
    mask[random.randrange(num_tokens)] = True
    is_single = num_beams == 1
    forced = random.randrange(num_tokens) if random.random() < 0.1 else None
    is_constrained = forced is None and random.random() < 0.6
    row = RowConditions(
        forced=forced,
        banned=[random.randrange(num_tokens) for _ in range(random.choice([0, 0, 1, 5]))],
        allowed=np.packbits(mask, bitorder="little") if is_constrained else None,
        temperature=random.choice([0.0, 0.3, 1.0]) if is_single else 0.0,
        top_p=random.choice([0.1, 0.9, 1.0]),
        uniform=random.random(),
        num_candidates=1 if is_single else 2 * num_beams,
    )
    if is_single:
        return [row]
    return [replace(row, beam_score=-5 * random.random()) for _ in range(num_beams)]


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


def test_a_row_gets_the_same_token_among_others() -> None:
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
def test_tokens_against_the_model_are_constrained(
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


def test_a_flat_distribution_has_a_wider_nucleus() -> None:
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


def test_without_an_allowed_token_it_is_minus_infinity() -> None:
    nothing = np.zeros_like(ALLOWED)
    for temperature in (0.0, 1.0):
        (choice,) = singles(logits_of(1), [RowConditions(allowed=nothing, temperature=temperature)])
        assert choice.logprob == -math.inf


def test_banned_tokens_of_a_beam_are_no_candidates() -> None:
    row = RowConditions(banned=(SIZE - 1, SIZE - 3), beam_score=0.0, num_candidates=3)
    (choices,) = choose_tokens(torch.arange(float(SIZE))[None], [row], [[0]])
    assert [choice.token_id for choice in choices] == [SIZE - 2, SIZE - 4, SIZE - 5]


def test_beams_are_searched_as_each_alone() -> None:
    logits = logits_of(7)
    conditions = [BEAM, GREEDY, BEAM, BEAM, RULED, BEAM, BEAM]
    rows = [(0, 2), (1,), (3, 5, 6), (4,)]
    together = choose_tokens(logits, conditions, rows)
    for sequence, choices in zip(rows, together, strict=True):
        of_sequence = [conditions[row] for row in sequence]
        (alone,) = choose_tokens(logits[list(sequence)], of_sequence, [range(len(sequence))])
        assert choices == alone
    assert [len(choices) for choices in together] == [6, 1, 6, 1]
    best = logits.log_softmax(-1)[[0, 2]].flatten().topk(6).values - 1.5
    assert [choice.score for choice in together[0]] == pytest.approx(best.tolist())


DEVICE = torch.device("cpu")
MAX_ROWS = 9
NO_INPUTS = NextInputs((), ())


def captured(
    logits: Tensor,
    conditions: Sequence[RowConditions],
    sequences: Sequence[Sequence[int]],
    kind: ChoiceKind | None = None,
) -> list[list[Choice]]:
    """Return what a captured step chooses, with as many rows in its buffers as there may be."""
    packed = PackedConditions(MAX_ROWS, logits.shape[1], DEVICE)
    kind = kind or ChoiceKind.captured(conditions, NO_INPUTS)
    packed.write(conditions, sequences, kind)
    results = choose(packed, logits, kind).numpy()
    assert not with_wider_nucleus(results, sequences)
    assert len(results[0]) <= MAX_RESULTS
    return unpack(results, conditions, sequences)


@pytest.mark.parametrize("size", [37, 1500])
def test_choices_equal_those_of_eager_operations(size: int) -> None:
    """Tokens and log-probabilities are equal to the last bit; only candidates of equal score may
    change places.
    """
    random = Random(size)
    generator = torch.Generator().manual_seed(size)
    num_rows_compared = 0
    while num_rows_compared < 1000:
        conditions, sequences = random_batch(random, size, MAX_ROWS)
        logits = torch.randn(len(conditions), size, generator=generator) * 4
        expected = choose_tokens(logits, conditions, sequences)
        result = captured(logits, conditions, sequences)
        for ours, theirs in zip(result, expected, strict=True):
            assert without_impossible(ours) == without_impossible(theirs)
        num_rows_compared += len(conditions)


def without_impossible(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices; of several, those that a beam can take, as -inf says that it cannot."""
    return [choice for choice in choices if choice.score > -math.inf or len(choices) == 1]


def test_rows_that_are_not_finite_change_no_other() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    logits[0, 5] = math.nan
    logits[3, 9] = math.inf
    nothing = np.zeros(7, np.uint8)
    beam = RowConditions(beam_score=-1.0, num_candidates=4)
    conditions = [GREEDY, GREEDY, RowConditions(allowed=nothing), beam, beam, GREEDY]
    rows = [[0], [1], [2], [3, 4], [5]]
    result = captured(logits, conditions, rows)
    expected = choose_tokens(logits, conditions, rows)
    assert math.isnan(result[0][0].logprob)
    assert math.isnan(result[3][0].score)
    assert result[2][0].logprob == -math.inf
    assert [result[1], result[4]] == [expected[1], expected[4]]


def test_a_nucleus_wider_than_the_usual_one_is_reported() -> None:
    packed = PackedConditions(3, 3000, DEVICE)
    wide = RowConditions(temperature=1.0, top_p=0.9, uniform=0.5)
    logits = torch.zeros(3, 3000)
    logits[1, 4] = 20.0
    for conditions, wider in (
        ([wide, wide, wide], [0, 2]),
        ([RowConditions(), wide, RowConditions(top_p=0.9)], []),
    ):
        packed.write(conditions, [[0], [1], [2]], ChoiceKind(True, False))
        results = choose(packed, logits, ChoiceKind(True, False)).numpy()
        assert with_wider_nucleus(results, [[0], [1], [2]]) == wider


def test_conditions_of_an_earlier_step_are_overwritten() -> None:
    packed = PackedConditions(2, 50, DEVICE)
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    strict = RowConditions(
        forced=3, temperature=2.0, uniform=0.9, beam_score=-3.0, num_candidates=4
    )
    mask = RowConditions(allowed=np.zeros(7, np.uint8), banned=(1, 2, 3))
    plain = RowConditions()
    rows = [[0], [1]]
    kind = ChoiceKind(True, True)
    packed.write([strict, mask], rows, kind, NextInputs([1, 1], [0, 0], {0: [1, 0], 1: [1, 0]}))
    packed.write([plain, plain], rows, kind, NextInputs([1, None], [0, 7]))
    result = choose(packed, logits, kind)
    assert unpack(result.numpy(), [plain] * 2, rows) == choose_tokens(logits, [plain] * 2, rows)
    following = next_inputs(packed, result, kind, torch.tensor([2]))
    assert following[0].tolist() == [int(result[1, 0]), 7]


@pytest.mark.parametrize("end_token_ids", [{2}, {2, 5}], ids=["one end token", "two end tokens"])
def test_beams_continue_on_the_device_as_the_host_decides(end_token_ids: set[int]) -> None:
    """Until a search ends: with end tokens among the best, too few candidates, forced tokens and
    slots out of order.
    """
    random = Random(len(end_token_ids))
    generator = torch.Generator().manual_seed(0)
    size = 24
    ends = frozenset(end_token_ids)
    rules = GenerationRules(ends, forced_bos_token_id=7, no_repeat_ngram_size=2)
    grammars = ("start: /[b-f]{1,9}/", 'start: "f" ("abcde" | "abdce")')
    constraints = [None, *map(Constraints(FAKE_TOKENIZER, end_token_ids).get, grammars)]
    num_compared = 0
    num_with_copies = 0
    while num_compared < 400:
        request = SequenceRequest(
            torch.zeros(1, 1), (3,), 12, num_beams=3, constraint=random.choice(constraints)
        )
        sequence = BeamSequence(request, rules)
        slots = random.sample(range(MAX_ROWS), 3)
        advance(sequence, torch.randn(1, size, generator=generator))
        while not sequence.has_ended:
            logits = torch.randn(4, size, generator=generator)
            conditions = [RowConditions(), *conditions_of(sequence, size)]
            logits[:, 2] += 1.5
            inputs: list[int | None] = [None] * MAX_ROWS
            for row, slot in enumerate(slots, 1):
                inputs[slot] = row
            packed = PackedConditions(MAX_ROWS, size, DEVICE)
            kind = ChoiceKind.captured(conditions, NO_INPUTS)
            slots_inputs = NextInputs(inputs, [9] * MAX_ROWS, dict.fromkeys(slots, slots))
            packed.write(conditions, [[0], [1, 2, 3]], kind, slots_inputs)
            ids = torch.tensor(sorted(ends))
            results = choose(packed, torch.cat([logits, torch.zeros(MAX_ROWS - 4, size)]), kind)
            parents = sequence.advance(unpack(results.numpy(), conditions, [[1, 2, 3]])[0])
            if not sequence.has_ended:
                tokens, *moves = next_inputs(packed, results, kind, ids)
                assert tokens[slots].tolist() == sequence.last_token_ids
                moved = [slots[parent] for parent in parents]
                assert [slot[:3].tolist() for slot in moves] == [moved, slots]
                num_compared += 1
                num_with_copies += sequence.beams[2].score < -1e8
    assert num_with_copies > 20


class PeakMemory(TorchDispatchMode):
    """Sums the memory of the tensors that operations return, for as long as these live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = self.peak_bytes = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._live:
                self._live.add(storage._cdata)
                self.num_bytes += storage.nbytes()
                finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)
        return result

    def _free(self, storage: int, num_bytes: int) -> None:
        self._live.discard(storage)
        self.num_bytes -= num_bytes


@pytest.mark.parametrize("kind", CAPTURED_KINDS, ids=repr)
def test_a_choice_takes_the_memory_that_is_counted(kind: ChoiceKind) -> None:
    num_rows = MAX_ROWS
    num_tokens = 50_000
    packed = PackedConditions(num_rows, num_tokens, DEVICE)
    logits = torch.zeros(num_rows, num_tokens)
    packed.write([RowConditions()] * num_rows, [[row] for row in range(num_rows)], kind)
    with PeakMemory() as memory:
        choose(packed, logits, kind)
    counted = num_rows * choice_bytes(num_tokens)
    kept = 2 * logits.nbytes  # logits of the last step, and of the last draw
    assert counted / 2 < memory.peak_bytes + kept + packed._on_device.nbytes <= counted


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_drawn_row_costs_no_other(top_p: float) -> None:
    logits = torch.zeros(MAX_ROWS, 50_000)  # a nucleus wider than the usual one
    drawn = RowConditions(temperature=1.0, top_p=top_p, uniform=0.5)
    peaks: list[int] = []
    for conditions in (drawn, GREEDY):
        with PeakMemory() as memory:
            singles(logits, [conditions, *[GREEDY] * (MAX_ROWS - 1)])
        peaks.append(memory.peak_bytes)
    assert peaks[0] <= 2 * peaks[1]


def test_what_has_no_room_does_not_fit() -> None:
    banned = tuple(range(MAX_BANNED))
    assert fits(
        [RowConditions(banned=banned), RowConditions(beam_score=0.0, num_candidates=MAX_CANDIDATES)]
    )
    assert not fits([RowConditions(), RowConditions(banned=(*banned, 40))])
    assert not fits([RowConditions(beam_score=0.0, num_candidates=MAX_CANDIDATES + 1)])
    # the beam's mask has them
    assert fits([RowConditions(banned=(*banned, 40), beam_score=0.0, num_candidates=6)])
