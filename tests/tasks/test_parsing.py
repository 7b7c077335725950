import pytest

from tasks.parsing import resolve_label


@pytest.mark.parametrize(
    ("written", "names", "expected"),
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
def test_label_of_a_name(written: str, names: list[str], expected: str) -> None:
    assert resolve_label(written, names) == expected
