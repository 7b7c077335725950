import pytest
import torch

from runners.decoder.answers import AnswerText, to_request
from runners.decoder.errors import UnknownAdapter
from runners.decoder.rules import GenerationRules
from runners.transport.messages import SequenceSpec
from tests.support.fake_decoder import EOS, FakeDecoder

BOS = 3


def test_the_start_token_is_never_text_whether_it_is_forced_or_not() -> None:
    for forced in ({}, {"forced_bos_token_id": BOS}):
        rules = GenerationRules.of({"eos_token_id": EOS, "bos_token_id": BOS, **forced})
        answer = AnswerText(FakeDecoder(rules))
        assert answer.push([BOS, 2, BOS, 4, EOS]) == answer.text == "ac"
        assert answer.token_ends == [1, 2]


def test_an_adapter_that_is_not_loaded_is_refused() -> None:
    decoder, features = FakeDecoder(adapter_keys=frozenset({"a" * 64})), torch.zeros(2, 4)
    spec = SequenceSpec(segments=[("abc", False)], adapter="a" * 64, timeout_s=1)
    assert to_request(decoder, features, spec).adapter == "a" * 64
    with pytest.raises(UnknownAdapter, match="no adapter of the build 'bbb"):
        to_request(decoder, features, spec.model_copy(update={"adapter": "b" * 64}))
