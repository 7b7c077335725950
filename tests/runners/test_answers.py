import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from runners.decoder.sequences import GeneratedSequence, SequenceRequest, WrittenSequence
from runners.errors import SequenceError
from runners.model_worker import DEFAULT_MAX_NEW_TOKENS, AnswerText, to_request, to_written
from runners.tokens.text import GenerationRules
from tests.support.fake_decoder import EOS, FAKE_RULES, MAX_POSITIONS, FakeDecoder
from tests.support.token_choices import is_failure
from wire.runner_messages import SequenceSpec, Written

BOS = 3


def test_the_start_token_is_never_text() -> None:
    for forced in ({}, {"forced_bos_token_id": BOS}):
        rules = GenerationRules.of({"eos_token_id": EOS, "bos_token_id": BOS, **forced})
        answer = AnswerText(FakeDecoder(rules))
        assert answer.push([BOS, 2, BOS, 4, EOS]) == answer.text == "ac"
        assert answer.token_ends == [1, 2]


def test_an_adapter_that_is_not_loaded_is_refused() -> None:
    decoder = FakeDecoder()
    decoder.adapters.add("a" * 64, {})
    assert request(decoder, adapter="a" * 64).adapter == "a" * 64
    with pytest.raises(
        SequenceError, check=is_failure("unknown_adapter"), match="no adapter of the build 'bbb"
    ):
        request(decoder, adapter="b" * 64)


def test_an_own_token_must_be_one_of_the_checkpoint() -> None:
    decoder = FakeDecoder()
    assert request(decoder, own_token="<eos>").prompt_ids == ()
    for text in ("<VQA>", "a", "<eos><eos>"):
        refusal = f"{text} is not a token of this checkpoint"
        with pytest.raises(SequenceError, check=is_failure("unknown_token"), match=refusal):
            request(decoder, own_token=text)


def request(decoder: FakeDecoder, **spec: object) -> SequenceRequest:
    values = {"segments": [], "timeout_s": 1} | spec
    return to_request(decoder, torch.zeros(2, 4), SequenceSpec.model_validate(values))


def test_a_request_has_every_option_of_its_message() -> None:
    decoder = FakeDecoder()
    heard: list[object] = []
    options: Any = {"temperature": 0.5, "top_p": 0.25, "seed": 7, "num_beams": 3, "client": "a"}
    options["max_new_tokens"] = 5
    features = torch.zeros(2, 4)
    segments = [("ab", False)]
    grammar = 'start: "a"'
    spec = SequenceSpec(segments=segments, timeout_s=9, grammar=grammar, **options)
    start_s = time.monotonic()
    built = to_request(decoder, features, spec, heard.append)
    assert start_s + 9 <= built.deadline_s <= time.monotonic() + 9
    prompt_ids = decoder.text.prompt_ids(segments)
    assert built == SequenceRequest(
        features,
        prompt_ids,
        **options,
        constraint=decoder.text.constraints.get(grammar),
        deadline_s=built.deadline_s,
        on_tokens=built.on_tokens,
        prompt_words=decoder.text.prompt_words(prompt_ids),
    )
    assert built.on_tokens is not None
    built.on_tokens([1])
    assert heard == [[1]]
    plain = request(decoder)
    assert (plain.constraint, plain.prompt_words, plain.on_tokens) == (None, None, None)


def test_max_new_tokens_fit_the_positions() -> None:
    left = MAX_POSITIONS - 2  # after two image tokens and an empty prompt
    short = FakeDecoder(replace(FAKE_RULES, max_new_tokens=4))
    long = FakeDecoder(replace(FAKE_RULES, max_new_tokens=MAX_POSITIONS))
    assert request(short).max_new_tokens == 4
    assert request(short, max_new_tokens=6).max_new_tokens == 6
    assert request(long).max_new_tokens == left
    assert left < DEFAULT_MAX_NEW_TOKENS == 1024  # Florence-2's model card
    assert request(FakeDecoder()).max_new_tokens == left
    assert request(FakeDecoder(), max_new_tokens=left).max_new_tokens == left
    message = f"max_new_tokens is {left + 1}; at most {left} are allowed"
    with pytest.raises(SequenceError, check=is_failure("sequence_too_long"), match=message):
        request(FakeDecoder(), max_new_tokens=left + 1)


def test_sampled_sequences_have_one_beam_by_default() -> None:
    decoder = FakeDecoder(replace(FAKE_RULES, num_beams=3))
    assert request(decoder).num_beams == 3
    assert request(decoder, temperature=0.1).num_beams == 1
    assert request(decoder, num_beams=2).num_beams == 2
    assert request(decoder, num_beams=2, temperature=0.1).num_beams == 2


def test_the_message_has_the_tokens_of_its_text() -> None:
    decoder = FakeDecoder()
    generated = GeneratedSequence((2, 4, EOS), (-0.5, -0.25, -0.125), "stop", 2)
    sequence = request(decoder, segments=[("abc", False)])
    written = to_written(decoder, sequence, WrittenSequence(generated, 1.0, 2.0, 3.0))
    assert written == Written(
        text="ac",
        token_ends=[1, 2],
        logprobs=[-0.5, -0.25],
        finish_reason="stop",
        num_prompt_tokens=3,
        num_generated_tokens=3,
        num_constrained_tokens=2,
        queue_s=1.0,
        prefill_s=2.0,
        decode_s=3.0,
    )
