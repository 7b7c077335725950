from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from runners.tokens.text import PromptTokenizer
from tests.support.export_cli import EMBEDDED, MODELS

CONTROL = [
    "<loc_5>",
    "<loc0005>",
    "<seg001>",
    "<image>",
    "</s>",
    "<s>",
    "<pad>",
    "<bos>",
    "<eos>",
    "<poly>",
    "<sep>",
]
TOKENIZERS = {name: PromptTokenizer.load(MODELS / name / "tokenizer.json") for name in EMBEDDED}
CONTROL_IDS = {
    name: set(AutoTokenizer.from_pretrained(MODELS / name).added_tokens_decoder)
    for name in EMBEDDED
}


@pytest.mark.parametrize("name", EMBEDDED)
@given(
    text=st.lists(st.sampled_from([*CONTROL, "red circle", " ", "<", ">", "é"])).map("".join)
    | st.text()
)
def test_plain_text_never_becomes_a_control_token(name: str, text: str) -> None:
    assert not CONTROL_IDS[name] & set(TOKENIZERS[name].encode([(text, False)]))


@pytest.mark.parametrize("name", EMBEDDED)
def test_plain_text_is_tokenized_as_by_transformers(name: str) -> None:
    text = "Locate the purple square, STOP 42 in the image."
    expected = AutoTokenizer.from_pretrained(MODELS / name)(
        text, add_special_tokens=False
    ).input_ids
    assert TOKENIZERS[name].encode([(text, False)]) == expected


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_tag_that_the_checkpoint_does_not_have_is_text_like_its_neighbours(name: str) -> None:
    whole = TOKENIZERS[name].encode([("<DocVQA>s circle <b>, red", False)])
    parts = [("<DocVQA>s ci", True), ("rcle ", False), ("<b>", True), (", red", False)]
    assert TOKENIZERS[name].encode(parts) == whole


@pytest.mark.parametrize("name", EMBEDDED)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30))
def test_detokenized_pieces_concatenate_to_the_text(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode([(text, False)])
    stream = TOKENIZERS[name].text_stream()
    assert "".join(stream(token_id) for token_id in ids).strip(" ") == text.strip(" ")


@pytest.mark.parametrize("name", EMBEDDED)
def test_no_piece_is_half_a_character(name: str) -> None:
    stream = TOKENIZERS[name].text_stream()
    pieces = [stream(token_id) for token_id in TOKENIZERS[name].encode([("a日b", False)])]
    assert pieces == ["a", "", "", "日", "b"]


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_prompt_is_neither_padded_nor_cut_as_the_file_says(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(MODELS / name / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    prompt = [("Locate the purple square, STOP 42 in the image.", False)]
    loaded = PromptTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(prompt) == TOKENIZERS[name].encode(prompt)
