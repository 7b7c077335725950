from runners.decoder.answers import AnswerText
from runners.decoder.rules import GenerationRules
from tests.support.fake_decoder import EOS, FakeDecoder

BOS = 3


def test_the_start_token_is_never_text_whether_it_is_forced_or_not() -> None:
    for forced in ({}, {"forced_bos_token_id": BOS}):
        rules = GenerationRules.of({"eos_token_id": EOS, "bos_token_id": BOS, **forced})
        answer = AnswerText(FakeDecoder(rules))
        assert answer.push([BOS, 2, BOS, 4, EOS]) == answer.text == "ac"
        assert answer.token_ends == [1, 2]
