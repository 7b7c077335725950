"""Readings of one text by several tiles are written once, in reading order."""

import pytest

from tasks.tiles.words import joined_line, merged_text


@pytest.mark.parametrize(
    ("left", "right", "line"),
    [
        ("the quick", "quick brown", "the quick brown"),
        ("the qui", "quick brown", "the quick brown"),
        ("the quick", "ick brown", "the quick brown"),
        ("the quick brow", "ick brown fox", "the quick brown fox"),
        ("the quick brown", "quick brown fox", "the quick brown fox"),
        ("HELL", "LLO", "HELLO"),
        ("HEL", "LO", "HEL LO"),  # one common letter may be chance
        ("a b", "c d", "a b c d"),
        ("to be", "be or not", "to be or not"),
        ("sea", "a dog", "sea a dog"),
        ("", "b", "b"),
        ("a", "", "a"),
        ("same", "same", "same"),
        ("a b a b", "a b a b c", "a b a b c"),  # as many words as possible
    ],
)
def test_joined_line(left: str, right: str, line: str) -> None:
    assert joined_line(left, right) == line


@pytest.mark.parametrize(
    ("whole", "rows", "text"),
    [
        ("", [["one two", "two three"]], "one two three"),
        ("", [["one\nfour", "two\nfive"]], "one two\nfour five"),
        ("", [["one\nfour", "two\nfive\nfour six"]], "one\nfour six\ntwo\nfive"),
        ("", [["one tw\nfour", "two\nfour five"]], "one two\nfour five"),
        # only a tile beside it continues a line
        ("", [["a be", "x\ny", "be c"]], "a be\nx\ny\nbe c"),
        ("", [["a b", ""], ["a b", "c"]], "a b\nc"),  # the overlap of two rows
        ("", [["one"], ["two"]], "one\ntwo"),
        ("HELLO", [["HEL", "LLO"]], "HELLO"),
        ("HELLO", [["HEL", "HELLO"]], "HELLO"),
        ("HELLO", [["HEL HELLO"]], "HELLO"),
        ("bye bye", [["bye bye"]], "bye bye"),
        ("invented words", [["real"]], "real"),
        ("whole", [["", ""]], "whole"),
        ("whole", [], "whole"),
    ],
)
def test_merged_text(whole: str, rows: list[list[str]], text: str) -> None:
    assert merged_text(whole, [dict(enumerate(row)) for row in rows]) == text


def test_tile_below_a_flat_one() -> None:
    rows = [{0: "a", 80: "b\nc"}, {80: "c\nd"}]  # the tile below the first one is flat
    assert merged_text("", rows) == "a\nb\nc\nd"
