import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from runners.decoder.tokenizer import PromptTokenizer
from tests.support.export_cli import EMBEDDED, MODELS

CONTROL = "<loc_5>", "<loc0005>", "<seg001>", "<image>", "</s>", "<s>", "<pad>", "<bos>", "<eos>", "<poly>", "<sep>"
TOKENIZERS = {name: PromptTokenizer.load(MODELS / name / "tokenizer.json") for name in EMBEDDED}
CONTROL_IDS = {name: set(AutoTokenizer.from_pretrained(MODELS / name).added_tokens_decoder) for name in EMBEDDED}


@pytest.mark.parametrize("name", EMBEDDED)
@given(text=st.lists(st.sampled_from([*CONTROL, "red circle", " ", "<", ">", "é"])).map("".join) | st.text())
def test_plain_text_never_becomes_a_control_token(name: str, text: str) -> None:
    assert not CONTROL_IDS[name] & set(TOKENIZERS[name].encode([(text, False)]))


@pytest.mark.parametrize("name", EMBEDDED)
def test_plain_text_is_tokenized_as_by_transformers(name: str) -> None:
    text = "Locate the purple square, STOP 42 in the image."
    expected = AutoTokenizer.from_pretrained(MODELS / name)(text, add_special_tokens=False).input_ids
    assert TOKENIZERS[name].encode([(text, False)]) == expected


@pytest.mark.parametrize(("name", "token"), [("florence-2-mini", "<loc_999>"), ("paligemma-mini", "<loc1023>")])
def test_a_control_segment_is_one_token(name: str, token: str) -> None:
    (token_id,) = TOKENIZERS[name].encode([(token, True)])
    assert token_id in CONTROL_IDS[name]


@pytest.mark.parametrize("name", EMBEDDED)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30))
def test_detokenized_pieces_concatenate_to_the_text(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode([(text, False)])
    stream = TOKENIZERS[name].text_stream()
    assert "".join(stream.push(token_id) for token_id in ids).strip(" ") == text.strip(" ")


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_piece_is_half_a_character(name: str) -> None:
    stream = TOKENIZERS[name].text_stream()
    pieces = [stream.push(token_id) for token_id in TOKENIZERS[name].encode([("a日b", False)])]
    assert pieces == ["a", "", "", "日", "b"]
