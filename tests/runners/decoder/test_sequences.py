import math
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from runners.decoder.sequences import GeneratedSequence, SequenceRequest, SingleSequence
from runners.errors import SequenceError
from runners.tokens.constraints import Constraints
from runners.tokens.rules import GenerationRules
from tests.support.tiny_tokenizer import tiny_tokenizer
from tests.support.token_choices import advance, is_failure

FREE = GenerationRules(frozenset({1}))


def request(max_new_tokens: int = 8, **options: float | int | None) -> SequenceRequest:
    return replace(SequenceRequest(torch.zeros(2, 4), (5, 6), max_new_tokens), **options)  # type: ignore[arg-type]


def preferring(*token_ids: int) -> Tensor:
    """Logits (V,) that prefer `token_ids` in this order."""
    logits = torch.zeros(10)
    for rank, token_id in enumerate(token_ids):
        logits[token_id] = 9.0 - rank
    return logits


def write(rules: GenerationRules, wanted: SequenceRequest, logits: Tensor) -> GeneratedSequence:
    sequence = SingleSequence(wanted, rules)
    while not sequence.has_ended:
        advance(sequence, logits[None])
    return sequence.result()


def test_end_token_stops() -> None:
    written = write(FREE, request(), preferring(1))
    assert (written.token_ids, written.finish_reason) == ((1,), "stop")
    assert written.logprobs[0] == pytest.approx(math.log(math.exp(9) / (math.exp(9) + 9)), abs=1e-5)


def test_max_new_tokens_ends_with_length() -> None:
    written = write(FREE, request(3), preferring(4))
    assert written.token_ids == (4, 4, 4)
    assert written.finish_reason == "length"


def test_end_token_at_the_last_position_still_stops() -> None:
    assert write(FREE, request(1), preferring(1)).finish_reason == "stop"


def test_forced_bos_comes_first_with_log_probability_0() -> None:
    written = write(replace(FREE, forced_bos_token_id=7), request(2), preferring(4))
    assert written.token_ids == (7, 4)
    assert written.logprobs[0] == 0.0


def test_forced_eos_ends_a_full_answer_with_length() -> None:
    written = write(replace(FREE, forced_eos_token_id=1), request(3), preferring(4))
    assert written.token_ids == (4, 4, 1)
    assert written.finish_reason == "length"


def test_no_ngram_is_repeated() -> None:
    written = write(replace(FREE, no_repeat_ngram_size=2), request(5), preferring(4, 5))
    pairs = list(zip(written.token_ids, written.token_ids[1:], strict=False))
    assert written.token_ids == (4, 4, 5, 4, 0)
    assert len(set(pairs)) == len(pairs)


def test_start_token_counts_in_ngrams() -> None:
    written = write(
        replace(FREE, decoder_start_token_id=4, no_repeat_ngram_size=2),
        request(3),
        preferring(4, 5),
    )
    assert written.token_ids == (4, 5, 4)


def test_sampling_is_repeatable_by_seed() -> None:
    logits = torch.zeros(10)
    answers = [write(FREE, request(temperature=1.0, seed=3), logits).token_ids for _ in range(3)]
    others = [
        write(FREE, request(temperature=1.0, seed=seed), logits).token_ids for seed in range(20)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert len(set(others)) > 10


def test_log_probabilities_do_not_depend_on_the_temperature() -> None:
    greedy = write(FREE, request(1), preferring(4))
    sampled = write(FREE, request(1, temperature=0.01, seed=0), preferring(4))
    assert greedy.logprobs == sampled.logprobs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_fails(temperature: float) -> None:
    with pytest.raises(SequenceError, check=is_failure("non_finite_logits")):
        write(FREE, request(temperature=temperature), torch.full((10,), math.nan))


def test_tokens_that_the_grammar_chose_against_the_model_are_counted() -> None:
    tokenizer = tiny_tokenizer(
        {2: "a", 3: "b"}, {0: "<pad>", 1: "<eos>", 4: "<loc_1>", 5: "<loc_2>"}
    )
    constraint = Constraints(tokenizer, {1}).get("start: location{2}")
    sequence = SingleSequence(replace(request(), constraint=constraint), FREE)
    for logits in (preferring(4), preferring(3, 5), preferring(1)):
        advance(sequence, logits[None])
    assert sequence.result().token_ids == (4, 5, 1)
    assert sequence.result().num_constrained == 1


def test_past_deadline_fails() -> None:
    with pytest.raises(SequenceError, check=is_failure("deadline_exceeded")):
        write(FREE, request(deadline_s=time.monotonic() - 1), preferring(4))
