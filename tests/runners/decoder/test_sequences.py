"""Sequences alone, greedy, sampled and by beams: rules, grammar, end and errors."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.decoder.sequences import (
    Beam,
    BeamSequence,
    GeneratedSequence,
    SequenceRequest,
    SingleSequence,
)
from runners.errors import SequenceError
from runners.tokens.text import Constraints, GenerationRules
from tests.support.fake_decoder import tiny_tokenizer
from tests.support.token_choices import advance, is_failure

EOS = 1
SIZE = 10
FREE = GenerationRules(frozenset({EOS}))
TOKENIZER = tiny_tokenizer({2: "a", 3: "b"}, {0: "<pad>", EOS: "<eos>", 4: "<loc_1>", 5: "<loc_2>"})
TWO_LOCATIONS = Constraints(TOKENIZER, {EOS}).get("start: location{2}")


def request(max_new_tokens: int = 8, **options: Any) -> SequenceRequest:
    return replace(SequenceRequest(torch.zeros(2, 4), (5, 6), max_new_tokens), **options)


def preferring(*token_ids: int) -> Tensor:
    """Return logits (V,) that prefer `token_ids` in this order."""
    logits = torch.zeros(SIZE)
    for rank, token_id in enumerate(token_ids):
        logits[token_id] = 9.0 - rank
    return logits


def generate(
    rules: GenerationRules, requested: SequenceRequest, logits: Tensor
) -> GeneratedSequence:
    sequence = SingleSequence(requested, rules)
    while not sequence.has_ended:
        advance(sequence, logits[None])
    return sequence.result()


@pytest.mark.parametrize(
    ("rules", "max_new_tokens", "preferred", "token_ids", "finish_reason"),
    [
        ({}, 8, (1,), (1,), "stop"),
        ({}, 1, (1,), (1,), "stop"),  # at the last position, too
        ({}, 3, (4,), (4, 4, 4), "length"),
        ({"forced_bos_token_id": 7}, 2, (4,), (7, 4), "length"),
        ({"forced_eos_token_id": 1}, 3, (4,), (4, 4, 1), "length"),
        ({"no_repeat_ngram_size": 2}, 5, (4, 5), (4, 4, 5, 4, 0), "length"),
        # the start token counts
        ({"decoder_start_token_id": 4, "no_repeat_ngram_size": 2}, 3, (4, 5), (4, 5, 4), "length"),
    ],
)
def test_rules_decide_tokens_and_end(
    rules: dict[str, Any],
    max_new_tokens: int,
    preferred: tuple[int, ...],
    token_ids: tuple[int, ...],
    finish_reason: str,
) -> None:
    generated = generate(replace(FREE, **rules), request(max_new_tokens), preferring(*preferred))
    assert (generated.token_ids, generated.finish_reason) == (token_ids, finish_reason)


def test_log_probabilities_are_those_of_the_model() -> None:
    forced = generate(replace(FREE, forced_bos_token_id=7), request(2), preferring(4))
    logprob = math.log(math.exp(9) / (math.exp(9) + 9))
    assert forced.logprobs == pytest.approx([0.0, logprob], abs=1e-5)
    sampled = generate(FREE, request(1, temperature=0.01, seed=0), preferring(4))
    assert sampled.logprobs == generate(FREE, request(1), preferring(4)).logprobs


def test_sampling_is_repeatable_by_seed() -> None:
    answers: list[tuple[int, ...]] = []
    for seed in (*range(20), *range(20)):
        sampled = request(temperature=1.0, seed=seed)
        answers.append(generate(FREE, sampled, torch.zeros(SIZE)).token_ids)
    assert answers[:20] == answers[20:]
    assert len(set(answers)) > 10


def test_tokens_chosen_against_the_model_are_counted() -> None:
    sequence = SingleSequence(request(constraint=TWO_LOCATIONS), FREE)
    for logits in (preferring(4), preferring(3, 5), preferring(1)):
        advance(sequence, logits[None])
    assert sequence.result().token_ids == (4, 5, 1)
    assert sequence.result().num_constrained == 1


@pytest.mark.parametrize(
    ("options", "logit", "code"),
    [
        ({}, math.nan, "non_finite_logits"),
        ({"temperature": 1.0}, math.nan, "non_finite_logits"),
        ({"num_beams": 2}, math.nan, "non_finite_logits"),
        ({"deadline_s": 0.0}, 0.0, "deadline_exceeded"),
        ({"deadline_s": 0.0, "num_beams": 2}, 0.0, "deadline_exceeded"),
    ],
)
def test_failures_end_the_sequence(options: dict[str, Any], logit: float, code: str) -> None:
    kind = BeamSequence if "num_beams" in options else SingleSequence
    sequence = kind(request(**options), FREE)
    assert time.monotonic() > 0.0
    advance(sequence, torch.full((1, SIZE), logit))
    assert sequence.has_ended
    with pytest.raises(SequenceError, check=is_failure(code)):
        sequence.result()


def beams(max_new_tokens: int = 4, rules: GenerationRules = FREE) -> BeamSequence:
    return BeamSequence(request(max_new_tokens, num_beams=2), rules)


def row(probabilities: dict[int, float]) -> Tensor:
    """Return logits (V,) of these probabilities, the rest shared evenly by all others."""
    rest = (1 - sum(probabilities.values())) / (SIZE - len(probabilities))
    return torch.tensor([probabilities.get(token_id, rest) for token_id in range(SIZE)]).log()


def step(sequence: BeamSequence, *rows: dict[int, float]) -> Any:
    return advance(sequence, torch.stack([row(probabilities) for probabilities in rows]))


def token_ids_of(sequence: BeamSequence) -> list[tuple[int, ...]]:
    return [beam.token_ids for beam in sequence.beams]


def test_a_better_second_token_wins_over_a_better_first() -> None:
    sequence = beams()
    step(sequence, {2: 0.5, 3: 0.4})
    assert step(sequence, {2: 0.4}, {4: 0.95}) == [1, 0]
    assert token_ids_of(sequence) == [(3, 4), (2, 2)]


def test_the_best_mean_wins_at_the_last_token() -> None:
    sequence = beams(max_new_tokens=2)
    step(sequence, {EOS: 0.3, 2: 0.6})
    assert [beam.token_ids for beam in sequence.finished] == [(EOS,)]
    assert (EOS,) not in token_ids_of(sequence)
    assert not sequence.has_ended
    step(sequence, {3: 0.9}, {})
    generated = sequence.result()
    assert (generated.token_ids, generated.finish_reason) == ((2, 3), "length")
    assert generated.logprobs == pytest.approx([math.log(0.6), math.log(0.9)], abs=1e-5)


@pytest.mark.parametrize(
    ("length_penalty", "token_ids"), [(0.0, (1,)), (0.5, (1,)), (0.6, (2, 3)), (1.0, (2, 3))]
)
def test_the_length_penalty_weighs_a_longer_answer(
    length_penalty: float, token_ids: tuple[int, ...]
) -> None:
    """ln .5 = -.69 for one token against ln (.4 x .9) / 2^p for two: -1.02, -.72, -.67, -.51."""
    sequence = beams(2, replace(FREE, length_penalty=length_penalty))
    step(sequence, {EOS: 0.5, 2: 0.4})
    step(sequence, {EOS: 0.02, 3: 0.9}, {})
    assert sequence.result().token_ids == token_ids


@pytest.mark.parametrize(("early_stopping", "has_ended"), [(False, False), (True, True)])
def test_early_stopping_ends_at_as_many_answers_as_beams(
    early_stopping: bool, has_ended: bool
) -> None:
    sequence = beams(rules=replace(FREE, early_stopping=early_stopping))
    step(sequence, {EOS: 0.4, 2: 0.59})
    step(sequence, {EOS: 0.05, 3: 0.94}, {})
    assert sequence.has_ended == has_ended


def test_all_beams_continue_a_forced_first_token() -> None:
    sequence = beams(rules=replace(FREE, forced_bos_token_id=5))
    step(sequence, {})
    step(sequence, {2: 0.6, 3: 0.3}, {4: 0.99})
    assert token_ids_of(sequence) == [(5, 2), (5, 3)]


@pytest.mark.parametrize(("kind", "num_beams"), [(SingleSequence, 1), (BeamSequence, 2)])
def test_forced_token_is_outside_of_the_grammar(
    kind: type[SingleSequence | BeamSequence], num_beams: int
) -> None:
    rules = replace(FREE, forced_bos_token_id=7)
    sequence = kind(request(num_beams=num_beams, constraint=TWO_LOCATIONS), rules)
    advance(sequence, torch.zeros(1, SIZE))
    while not sequence.has_ended:
        advance(sequence, torch.zeros(num_beams, SIZE))
    generated = sequence.result()
    forced, *locations, end = generated.token_ids
    assert (forced, end) == (7, EOS)
    assert set(locations) <= {4, 5}
    assert generated.num_constrained == 3


def test_tokens_common_to_all_answers_are_settled() -> None:
    sequence = beams()
    assert list(sequence.settled_token_ids) == []
    step(sequence, {2: 0.5, 3: 0.4})
    assert list(sequence.settled_token_ids) == []
    step(sequence, {2: 0.01}, {4: 0.6, 5: 0.35})
    assert token_ids_of(sequence) == [(3, 4), (3, 5)]
    assert list(sequence.settled_token_ids) == [3]
    for token_ids in ((2, EOS), (3, EOS)):
        sequence.finished.append(Beam(token_ids, finish_reason="stop"))
    assert list(sequence.settled_token_ids) == []
