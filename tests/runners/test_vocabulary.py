from pathlib import Path

import pytest
from tokenizers import Tokenizer

from runners.decoder.vocabulary import Vocabulary
from tests.support.export_cli import EMBEDDED, MODELS

TEXTS = ("red circle", " a word ; and another", "größe 12", "日本", "<loc_5> as text")


@pytest.fixture(params=EMBEDDED)
def tokenizer_file(request: pytest.FixtureRequest) -> Path:
    return MODELS / str(request.param) / "tokenizer.json"


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_are_its_own(tokenizer_file: Path, text: str) -> None:
    vocabulary, tokenizer = Vocabulary.load(tokenizer_file), Tokenizer.from_file(str(tokenizer_file))
    ids = [i for i in tokenizer.encode(text, add_special_tokens=False).ids if i in vocabulary.ids_of("text")]
    plain = text.replace("<loc_5>", "") if len(vocabulary.ids_of("<loc_5>")) else text
    assert b"".join(map(vocabulary.bytes_of, ids)).decode() == plain


def test_classes_hold_what_their_names_say(tokenizer_file: Path) -> None:
    vocabulary, tokenizer = Vocabulary.load(tokenizer_file), Tokenizer.from_file(str(tokenizer_file))
    is_florence2 = tokenizer.token_to_id("<loc_0>") is not None
    assert len(vocabulary.ids_of("location")) == (1000 if is_florence2 else 1024)
    assert len(vocabulary.ids_of("segmentation")) == (0 if is_florence2 else 128)
    assert vocabulary.ids_of("<sep>") == ({tokenizer.token_to_id("<sep>")} if is_florence2 else set())
    assert not vocabulary.ids_of("text") & (vocabulary.ids_of("location") | vocabulary.ids_of("<sep>"))


def test_a_text_begins_with_the_tokens_that_spell_it(tokenizer_file: Path) -> None:
    vocabulary = Vocabulary.load(tokenizer_file)
    begins = {vocabulary.bytes_of(token_id) for token_id in vocabulary.ids_that_begin(b"red circle")}
    assert b"r" in begins
    assert b"red" in begins
    assert all(b"red circle".startswith(each) for each in begins)
