from collections import Counter
from itertools import chain

import pytest
from tokenizers import Tokenizer

from laboratory.things.catalogue import THINGS, plural_of
from laboratory.things.material import FONTS
from laboratory.things.wording import ALPHABETS
from laboratory.training.data.tokenizers import florence2_tokenizer, paligemma_tokenizer
from tasks.table import LANGUAGES
from tests.support.catalog import CATALOG


def test_every_thing_has_a_name_and_a_glyph_of_its_own_and_a_kind() -> None:
    assert len(THINGS) == 150
    assert len({thing.name for thing in THINGS}) == len({thing.emoji for thing in THINGS}) == 150
    assert all(thing.kinds for thing in THINGS)


def test_no_label_means_a_thing_and_something_else() -> None:
    own = list(chain.from_iterable((thing.name, *thing.synonyms) for thing in THINGS))
    kinds = set(chain.from_iterable(thing.kinds for thing in THINGS))
    assert [label for label, count in Counter(own).items() if count > 1] == []
    assert kinds.isdisjoint(own)


def test_lookalikes_are_other_things() -> None:
    names = {thing.name for thing in THINGS}
    for thing in THINGS:
        assert set(thing.lookalikes) <= names - {thing.name}, thing.name


@pytest.mark.parametrize(
    ("name", "plural"), [("cat", "cats"), ("cherry", "cherries"), ("key", "keys"), ("box", "boxes")]
)
def test_plurals_are_regular(name: str, plural: str) -> None:
    assert plural_of(name) == plural


def test_a_fifth_of_forty_font_families_is_held_out() -> None:
    assert len({font.file for font in FONTS}) == 40
    assert sum(font.is_held_out for font in FONTS) == 8


def test_alphabets_are_those_of_the_languages_in_latin_script() -> None:
    other_scripts = {"ar", "bn", "el", "fa", "he", "hi", "ja", "ko", "ru", "te", "th", "uk", "zh"}
    assert set(ALPHABETS) == set(LANGUAGES) - other_scripts


@pytest.mark.long
@pytest.mark.parametrize("model_id", ["florence-2-mini", "paligemma-mini"])
def test_names_are_few_tokens_and_letters_one(model_id: str) -> None:
    make = florence2_tokenizer if model_id == "florence-2-mini" else paligemma_tokenizer
    tokenizer: Tokenizer = make(CATALOG[model_id], has_things=True)
    for thing in THINGS:
        assert len(tokenizer.encode(f" {thing.name}", add_special_tokens=False).ids) <= 4
    for letter in set(chain.from_iterable(ALPHABETS.values())):
        assert len(tokenizer.encode(letter, add_special_tokens=False).ids) == 1, letter
