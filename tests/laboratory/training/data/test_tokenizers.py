import pytest
from tokenizers import Tokenizer

from laboratory.training.data.tokenizers import padded_size, prompt_tokenizer
from tasks.catalog import CatalogEntry
from tests.support.export_cli import MODELS

TEXTS = [
    "a red circle, an orange star and a purple square with text",
    (
        "The image shows two shapes on a dark background: a small red circle and a large blue"
        " square. The text says QX4Z."
    ),
    "is there a green triangle?",
    "Ünïcödé 漢字 🦊",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_words_of_scenes_are_one_token_and_random_words_one_for_each_character(
    tokenizer: Tokenizer,
) -> None:
    for word in (" red", " circle", " large", " background", " shapes"):
        assert len(tokenizer.encode(word).ids) == 1, word
    assert len(tokenizer.encode("QX4Z").ids) == 4


@pytest.mark.parametrize(
    "text", ["<image>", "<loc_5>", "<loc0005>", "<seg001>", "</s>", "<eos>", "<poly>"]
)
def test_text_of_a_user_never_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    control = {
        token_id
        for token_id, added in tokenizer.get_added_tokens_decoder().items()
        if added.content == text
    }
    assert control.isdisjoint(prompt_tokenizer(tokenizer).encode([(text, False)]))


def test_control_tokens_of_the_family_are_single_tokens(
    tokenizer: Tokenizer, entry: CatalogEntry
) -> None:
    florence2 = [
        "<s>",
        "</s>",
        "<pad>",
        "<loc_0>",
        "<loc_999>",
        "<sep>",
        "<poly>",
        "</poly>",
        "<image>",
    ]
    paligemma = [
        "<bos>",
        "<eos>",
        "<pad>",
        "<loc0000>",
        "<loc1023>",
        "<seg000>",
        "<seg127>",
        "<image>",
    ]
    for token in florence2 if entry.family == "florence2" else paligemma:
        assert tokenizer.encode(token).tokens == [token]


def test_ids_are_dense_and_the_embedding_has_a_row_for_each(tokenizer: Tokenizer) -> None:
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    assert ids == list(range(len(ids)))
    assert len(ids) <= padded_size(tokenizer) < len(ids) + 8


def test_committed_tokenizer_equals_a_new_one(tokenizer: Tokenizer, model_id: str) -> None:
    committed = Tokenizer.from_file(str(MODELS / model_id / "tokenizer.json"))
    assert committed.get_vocab() == tokenizer.get_vocab()
    for text in TEXTS:
        assert committed.encode(text).ids == tokenizer.encode(text).ids
