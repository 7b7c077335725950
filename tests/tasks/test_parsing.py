import pytest

from tasks.parsing import resolve_label


@pytest.mark.parametrize(
    ("written", "asked", "expected"),
    [
        ("dog", ["Dog", "cat"], "Dog"),
        ("STRASSE", ["straße"], "straße"),
        ("puppy", ["dog"], "puppy"),
        ("puppy", [], "puppy"),
        ("dog", ["a dog", "a cat"], "a dog"),
        ("the dog", ["dog"], "dog"),
        # the equal one before the one that differs by its article
        ("dog", ["a dog", "dog"], "dog"),
        ("a", ["the"], "a"),
        ("", ["dog"], "dog"),
        ("", ["dog", "cat"], ""),
        ("", [], ""),
    ],
)
def test_a_label_is_the_name_that_was_asked_for(
    written: str, asked: list[str], expected: str
) -> None:
    assert resolve_label(written, asked) == expected
