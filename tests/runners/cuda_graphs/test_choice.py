"""The choice of tokens in fixed shapes against `choose_tokens`, over random logits and conditions."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any
from weakref import finalize

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from export.gpu_check.choices import random_batch
from runners.cuda_graphs.choice import (
    KINDS,
    MAX_BANNED,
    MAX_CANDIDATES,
    MAX_RESULTS,
    ChoiceKind,
    PackedConditions,
    choice_bytes,
    fits,
    has_wider_nucleus,
    unpack,
)
from runners.tokens.token_choice import Choice, RowConditions, choose_tokens

DEVICE = torch.device("cpu")
MAX_ROWS = 9


def recorded(
    logits: Tensor,
    conditions: Sequence[RowConditions],
    sequences: Sequence[Sequence[int]],
    kind: ChoiceKind | None = None,
) -> list[list[Choice]]:
    """Return what a recorded step chooses, with as many rows in its buffers as there may be."""
    packed = PackedConditions(MAX_ROWS, logits.shape[1], DEVICE)
    packed.write([*conditions])
    results = packed.choose(logits, kind or ChoiceKind.of(conditions)).tolist()
    assert not has_wider_nucleus(results, range(len(results)))
    assert len(results[0]) <= MAX_RESULTS
    return unpack(results, conditions, sequences)


@pytest.mark.parametrize("size", [37, 640, 1500])
def test_choices_equal_those_of_eager_operations(size: int) -> None:
    """Tokens and log-probabilities are equal to the last bit; only candidates of equal score may change places."""
    random, generator = Random(size), torch.Generator().manual_seed(size)
    num_rows_compared = 0
    while num_rows_compared < 3000:
        conditions, sequences = random_batch(random, size, MAX_ROWS)
        logits = torch.randn(len(conditions), size, generator=generator) * 4
        expected, found = choose_tokens(logits, conditions, sequences), recorded(logits, conditions, sequences)
        for ours, theirs in zip(found, expected, strict=True):
            assert without_impossible(ours) == without_impossible(theirs)
        num_rows_compared += len(conditions)


def without_impossible(choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices; of several, those that a beam can take, as -inf says that it cannot."""
    return [choice for choice in choices if choice.score > -math.inf or len(choices) == 1]


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_what_a_kind_computes_in_addition_changes_no_other_row(kind: ChoiceKind) -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    conditions = [RowConditions(), RowConditions(banned=(3, 9)), RowConditions(forced=7), RowConditions()]
    rows = [[0], [1], [2], [3]]
    assert recorded(logits, conditions, rows, kind) == choose_tokens(logits, conditions, rows)


def test_tokens_behind_a_mask_that_is_shorter_than_the_vocabulary_are_not_allowed() -> None:
    logits = torch.arange(50.0).expand(1, -1)
    ((choice,),) = recorded(logits, [RowConditions(allowed=np.full(2, 255, np.uint8))], [[0]])
    assert choice.token_id == 15


def test_a_row_that_is_not_finite_and_one_without_an_allowed_token_are_found_and_change_no_other() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    logits[0, 5], logits[3, 9] = math.nan, math.inf
    nothing = np.zeros(7, np.uint8)
    beam = RowConditions(beam_score=-1.0, num_candidates=4)
    conditions = [RowConditions(), RowConditions(), RowConditions(allowed=nothing), beam, beam, RowConditions()]
    rows = [[0], [1], [2], [3, 4], [5]]
    found, expected = recorded(logits, conditions, rows), choose_tokens(logits, conditions, rows)
    assert math.isnan(found[0][0].logprob)
    assert math.isnan(found[3][0].score)
    assert found[2][0].logprob == -math.inf
    assert [found[1], found[4]] == [expected[1], expected[4]]


def test_a_nucleus_wider_than_the_usual_one_is_reported() -> None:
    packed = PackedConditions(3, 3000, DEVICE)
    wide = RowConditions(temperature=1.0, top_p=0.9, uniform=0.5)
    logits = torch.zeros(3, 3000)
    logits[1, 4] = 20.0
    for conditions, is_wider in (
        ([wide, wide, wide], True),
        ([RowConditions(), wide, RowConditions(top_p=0.9)], False),
    ):
        packed.write(conditions)
        results = packed.choose(logits, ChoiceKind(True, False)).tolist()
        assert has_wider_nucleus(results, range(len(results))) is is_wider


def test_conditions_of_an_earlier_step_are_overwritten() -> None:
    packed, logits = PackedConditions(2, 50, DEVICE), torch.randn(2, 50, generator=torch.Generator().manual_seed(3))
    strict = RowConditions(forced=3, temperature=2.0, uniform=0.9, beam_score=-3.0, num_candidates=4)
    mask = RowConditions(allowed=np.zeros(7, np.uint8), banned=(1, 2, 3))
    plain = RowConditions()
    packed.write([strict, mask])
    packed.write([plain, plain])
    found = packed.choose(logits, ChoiceKind(True, True)).tolist()
    assert unpack(found, [plain] * 2, [[0], [1]]) == choose_tokens(logits, [plain] * 2, [[0], [1]])


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


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_a_choice_takes_no_more_memory_than_is_counted_for_it(kind: ChoiceKind) -> None:
    num_rows, num_tokens = MAX_ROWS, 50_000
    packed, logits = PackedConditions(num_rows, num_tokens, DEVICE), torch.zeros(num_rows, num_tokens)
    packed.write([RowConditions()] * num_rows)
    with PeakMemory() as memory:
        packed.choose(logits, kind)
    counted = num_rows * choice_bytes(num_tokens)
    kept = 2 * logits.nbytes  # those of the last step, and those that tokens were last drawn from
    assert counted / 2 < memory.peak_bytes + kept + packed.num_bytes <= counted


def test_what_has_no_room_does_not_fit() -> None:
    banned = tuple(range(MAX_BANNED))
    assert fits([RowConditions(banned=banned), RowConditions(beam_score=0.0, num_candidates=MAX_CANDIDATES)])
    assert not fits([RowConditions(), RowConditions(banned=(*banned, 40))])
    assert not fits([RowConditions(beam_score=0.0, num_candidates=MAX_CANDIDATES + 1)])
    assert fits([RowConditions(banned=(*banned, 40), beam_score=0.0, num_candidates=6)])  # in the beam's mask
