"""Edges that a small change of the code would move: each test was seen to fail with such a
change.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from runners.decoder.engines import EagerEngine
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import BeamSequence, SequenceRequest
from runners.kv_cache.slot_cache import SlotCache
from runners.options import SchedulerLimits
from runners.tokens.choice import _draw_from_nucleus
from runners.tokens.rules import GenerationRules
from tests.support.fake_decoder import EOS, FakeDecoder
from tests.support.token_choices import advance

TIMEOUT_S = 30
NUM_SLOTS = 4


class FailsAfterPrefill(SlotCache):
    """Fails once where the rows of a sequence with beams are copied, after its first slot was
    taken.
    """

    failure: Exception | None = None

    def add_beams(self, targets_of: Mapping[int, Sequence[int]]) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        super().add_beams(targets_of)


@pytest.mark.parametrize(
    "failure", [RuntimeError("no copy"), torch.OutOfMemoryError("no copy")], ids=repr
)
def test_a_prefill_that_fails_frees_the_slots_that_it_took(failure: Exception) -> None:
    decoder = FakeDecoder()
    engine = EagerEngine(decoder, NUM_SLOTS)
    engine.cache = cache = FailsAfterPrefill(decoder.shape, NUM_SLOTS)
    cache.failure = failure
    limits = SchedulerLimits(NUM_SLOTS, max_waiting=8, max_prefill_tokens=100)
    scheduler = Scheduler(decoder, "fake", limits, lambda *_: engine)
    scheduler.start()
    wide = SequenceRequest(torch.zeros(2, 4), (5, 6), max_new_tokens=9, num_beams=NUM_SLOTS)
    (failed,) = scheduler.submit([wide])
    with pytest.raises(type(failure), match="no copy"):
        failed.result(TIMEOUT_S)
    (written,) = scheduler.submit([wide])  # needs every slot
    assert written.result(TIMEOUT_S).sequence.token_ids == (5, 6, EOS)
    scheduler.stop()
    assert max(decoder.step_sizes) == NUM_SLOTS


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.5, {0}),
        (0.501, {0, 1}),
        (0.75, {0, 1}),
        (0.751, {0, 1, 2}),
        (0.90625, {0, 1, 2}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.15625, 0.09375])  # sums without rounding
    uniform = torch.linspace(0, 0.999, 50, dtype=torch.float64)[:, None]
    drawn, _ = _draw_from_nucleus(
        probabilities.expand(50, -1), torch.full_like(uniform, top_p), uniform, 4
    )
    assert set(drawn.flatten().tolist()) == kept


@pytest.mark.parametrize(
    ("length_penalty", "token_ids"), [(0.0, (1,)), (0.5, (1,)), (0.6, (2, 3)), (1.0, (2, 3))]
)
def test_the_length_penalty_weighs_a_longer_answer(
    length_penalty: float, token_ids: tuple[int, ...]
) -> None:
    """ln .5 = -.69 for one token against ln (.4 x .9) / 2^p for two: -1.02, -.72, -.67, -.51."""
    rules = replace(GenerationRules(frozenset({1})), length_penalty=length_penalty)
    sequence = BeamSequence(SequenceRequest(torch.zeros(2, 4), (5,), 2, num_beams=2), rules)
    advance(sequence, torch.tensor([[0.05, 0.5, 0.4, 0.05]]).log())
    advance(sequence, torch.tensor([[0.05, 0.02, 0.03, 0.9], [0.25] * 4]).log())
    assert sequence.result().token_ids == token_ids
    assert math.isfinite(sequence.finished[0].score)
