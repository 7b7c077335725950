import math
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runners.decoder.sequences import Beam, BeamSequence, FinishedBeam, SequenceRequest
from runners.errors import SequenceError
from runners.tokens.constraints import Constraints
from runners.tokens.rules import GenerationRules
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.token_choices import advance, is_failure

EOS = 1
SIZE = 6
RULES = GenerationRules(frozenset({EOS}))


def request(num_beams: int = 2, max_new_tokens: int = 4) -> SequenceRequest:
    return SequenceRequest(torch.zeros(2, 4), (5,), max_new_tokens, num_beams=num_beams)


def row(probabilities: dict[int, float]) -> Tensor:
    """Logits (V,) of these probabilities, the rest shared evenly by all others."""
    rest = (1 - sum(probabilities.values())) / (SIZE - len(probabilities))
    return torch.tensor([probabilities.get(token_id, rest) for token_id in range(SIZE)]).log()


def test_a_better_second_token_wins_over_a_better_first() -> None:
    sequence = BeamSequence(request(), RULES)
    advance(sequence, row({2: 0.5, 3: 0.4})[None])
    parents = advance(sequence, torch.stack([row({2: 0.4}), row({4: 0.95})]))
    assert [beam.token_ids for beam in sequence.beams] == [(3, 4), (2, 2)]
    assert parents == [1, 0]


def test_a_finished_beam_is_kept_and_the_search_continues() -> None:
    sequence = BeamSequence(request(), RULES)
    advance(sequence, row({EOS: 0.5, 2: 0.3})[None])
    assert [finished.beam.token_ids for finished in sequence.finished] == [(EOS,)]
    assert all(beam.token_ids != (EOS,) for beam in sequence.beams)
    assert not sequence.has_ended


def test_the_best_mean_wins_at_the_last_token() -> None:
    sequence = BeamSequence(request(max_new_tokens=2), RULES)
    advance(sequence, row({EOS: 0.3, 2: 0.6})[None])
    advance(sequence, torch.stack([row({3: 0.9}), row({})]))
    written = sequence.result()
    assert (written.token_ids, written.finish_reason) == ((2, 3), "length")
    assert written.logprobs == pytest.approx([math.log(0.6), math.log(0.9)], abs=1e-5)


def test_early_stopping_ends_once_there_are_as_many_answers_as_beams() -> None:
    patient, hasty = (
        BeamSequence(request(), replace(RULES, early_stopping=value)) for value in (False, True)
    )
    for sequence in (patient, hasty):
        advance(sequence, row({EOS: 0.4, 2: 0.59})[None])
        advance(sequence, torch.stack([row({EOS: 0.05, 3: 0.94}), row({})]))
    assert hasty.has_ended
    assert not patient.has_ended


def test_after_a_forced_first_token_all_beams_continue_it() -> None:
    sequence = BeamSequence(request(), replace(RULES, forced_bos_token_id=5))
    advance(sequence, row({})[None])
    advance(sequence, torch.stack([row({2: 0.6, 3: 0.3}), row({4: 0.99})]))
    assert [beam.token_ids for beam in sequence.beams] == [(5, 2), (5, 3)]


def test_every_beam_follows_the_grammar() -> None:
    tokenizer = tiny_tokenizer(
        {2: "a", 3: "b"}, {0: "<pad>", EOS: "<eos>", 4: "<loc_1>", 5: "<loc_2>"}
    )
    constraint = Constraints(tokenizer, {EOS}).get("start: location{2}")
    sequence = BeamSequence(replace(request(), constraint=constraint), RULES)
    advance(sequence, row({2: 0.9})[None])
    while not sequence.has_ended:
        advance(sequence, torch.stack([row({3: 0.9})] * 2))
    assert len(sequence.result().token_ids) == 3
    assert set(sequence.result().token_ids[:2]) <= {4, 5}
    assert sequence.result().token_ids[2] == EOS
    assert sequence.result().num_constrained == 3


def test_nan_fails() -> None:
    sequence = BeamSequence(request(), RULES)
    advance(sequence, torch.full((1, SIZE), math.nan))
    with pytest.raises(SequenceError, check=is_failure("non_finite_logits")):
        sequence.result()


def test_past_deadline_fails() -> None:
    sequence = BeamSequence(replace(request(), deadline_s=time.monotonic() - 1), RULES)
    advance(sequence, row({})[None])
    with pytest.raises(SequenceError, check=is_failure("deadline_exceeded")):
        sequence.result()


def test_tokens_common_to_all_beams_are_settled() -> None:
    sequence = BeamSequence(request(), RULES)
    assert list(sequence.settled_token_ids) == []
    advance(sequence, row({2: 0.5, 3: 0.4})[None])
    assert list(sequence.settled_token_ids) == []
    advance(sequence, torch.stack([row({2: 0.01}), row({4: 0.6, 5: 0.35})]))
    assert [beam.token_ids for beam in sequence.beams] == [(3, 4), (3, 5)]
    assert list(sequence.settled_token_ids) == [3]
    advance(sequence, torch.stack([row({EOS: 0.9, 2: 0.05}), row({2: 0.02})]))
    assert sequence.finished[0].beam.token_ids == (3, 4, EOS)
    assert list(sequence.settled_token_ids)[:1] == [3]


def test_tokens_that_a_finished_answer_lacks_are_not_settled() -> None:
    sequence = BeamSequence(request(), RULES, beams=[Beam((3, 4)), Beam((3, 5))])
    assert list(sequence.settled_token_ids) == [3]
    sequence.finished.append(FinishedBeam(Beam((2, EOS)), -0.5, "stop"))
    assert list(sequence.settled_token_ids) == []
