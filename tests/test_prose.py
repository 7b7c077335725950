"""Comments, docstrings, messages and pages hold the rules of tests/support/prose.py."""

from pathlib import Path

import pytest

from tests.support.catalog import ROOT
from tests.support.code_folders import PACKAGES
from tests.support.prose import Passage, files, findings, num_words, passage_findings, passages

FOLDERS = tuple(name.partition("/")[0] for name in PACKAGES)
ONE_ROOM = ("docs", "deploy", ".ci", "tests")
OF_THE_ROOT = ("*.md", "*.toml", "*.yaml", "*.txt", "Makefile")


def rooms() -> dict[str, list[Path]]:
    """Return the files of every room: a folder of a folder of code, a whole other folder."""
    found = {".": [path for pattern in OF_THE_ROOT for path in sorted(ROOT.glob(pattern))]}
    for folder in FOLDERS:
        for path in files(ROOT / folder):
            inside = path.relative_to(ROOT / folder).parts[:-1]
            found.setdefault("/".join((folder, *inside[:1])), []).append(path)
    return found | {folder: files(ROOT / folder) for folder in ONE_ROOM}


ROOMS = rooms()


@pytest.mark.parametrize("room", ROOMS)
def test_prose_reads_at_once(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{finding.line}: {finding.rule}: {finding.excerpt}"
        for path in ROOMS[room]
        for finding in findings(path)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("kind", "text", "rule"),
    [
        ("comment", "of a row that ended", "comment begins with a preposition or pronoun"),
        ("comment", "Whose pass it is", "comment begins with a preposition or pronoun"),
        (
            "docstring",
            "Say whether both answer.",
            "docstring begins with a clause or a people verb",
        ),
        ("docstring", "What waits goes in.", "docstring begins with a clause or a people verb"),
        ("message", "image is no URL", "is no NOUN"),
        ("comment", "The peer is none of our services.", "is no NOUN"),
        ("docstring", "The answer; None: it ended.", "; None: gloss"),
        ("page", "It has a folder of its own.", "of its own"),
        ("comment", "A step recorded once is a graph that is recorded.", "capture, not record"),
        ("message", "labels, divided by commas", "comma-separated, not by commas"),
        ("page", f"{'word ' * 31}.", "sentence of 31 words"),
    ],
)
def test_pattern_is_found(kind: str, text: str, rule: str) -> None:
    assert rule in found_rules(kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("comment", "There is no kernel for it."),
        ("comment", "There may be no other card."),
        ("comment", "Each runner keeps part of its own images."),
        ("comment", "A row is no longer used."),
        ("comment", "Offsets are in bytes."),
        ("docstring", "Return the answer, or None."),
        ("message", "Which is it?"),
        ("comment", "A request is recorded in metrics."),
        ("page", f"{'Word ' * 30}. {'Word ' * 30}."),
        ("page", f"{'word ' * 29}`one piece of code`."),
    ],
)
def test_plain_prose_passes(kind: str, text: str) -> None:
    assert found_rules(kind, text) == []


def found_rules(kind: str, text: str) -> list[str]:
    passage = Passage(kind, 1, text)  # type: ignore[arg-type]
    return [finding.rule for finding in passage_findings(passage)]


def test_passages_of_code_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""Doc."""\n\n# one\n# two\nx = f"a {1} b"  # of x\n# three\n', encoding="utf-8"
    )
    assert {(each.kind, each.line, each.text) for each in passages(path)} == {
        ("docstring", 1, "Doc."),
        ("comment", 3, "one\ntwo"),
        ("message", 5, "a … b"),
        ("comment", 5, "of x"),
        ("comment", 6, "three"),
    }


def test_generated_tables_code_and_rules_of_tables_are_not_prose(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(
        "# Head\n\nOne\nparagraph.\n- item\n  goes on\n\n| a | b |\n|---|---|\n\n"
        "```\ncode\n```\n<!-- table: x -->\nmade\n<!-- end -->\nlast\n",
        encoding="utf-8",
    )
    found = [(each.line, each.text) for each in passages(path) if each.text.strip()]
    assert found == [
        (1, "Head"),
        (3, "One\nparagraph."),
        (5, "item\n  goes on"),
        (8, " a"),
        (8, " b"),
        (17, "last"),
    ]


def test_words_of_a_sentence_are_counted_as_read() -> None:
    assert num_words("See [the guide](docs/a.md) – `make serve PORT=1` runs it.") == 6
