"""The lines of an output file that a crash left complete are read; a cut one is removed."""

import tracemalloc
from pathlib import Path

import pytest

from service.batches.journal import Journal
from service.batches.lines import OutputError, OutputLine, OutputResponse, RenderedLine, id_hash


def answer(custom_id: str, status: int = 200, size: int = 1) -> RenderedLine:
    response = OutputResponse(status_code=status, request_id="r", body={"text": "x" * size})
    return OutputLine(id="b", custom_id=custom_id, response=response).rendered()


def expired(custom_id: str) -> RenderedLine:
    return OutputLine(id="b", custom_id=custom_id, response=None, error=OutputError()).rendered()


def recovered(journal: Journal, custom_ids: str = "abc") -> str:
    """Return the ids of those given that had a line when the journal was opened."""
    return "".join(each for each in custom_ids if id_hash(each) in journal.recovered)


def opened(folder: Path) -> Journal:
    return Journal.open(folder / "output", folder / "errors")


def test_answers_and_errors_are_found_in_their_files(tmp_path: Path) -> None:
    first = opened(tmp_path)
    first.append([answer("a"), answer("b", 404), expired("c")])
    again = opened(tmp_path)
    for journal in (first, again):
        assert (journal.num_answered, journal.num_failed) == (1, 2)
    assert (recovered(first), recovered(again, "abcd")) == ("", "abc")


def test_an_unused_file_is_not_made(tmp_path: Path) -> None:
    opened(tmp_path).append([answer("a")])
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.parametrize("size", [1, 70_000, 200_000])
def test_a_line_that_was_cut_is_removed_wherever_it_was_cut(tmp_path: Path, size: int) -> None:
    journal = opened(tmp_path)
    journal.append([answer("a", size=size)])
    whole = journal.output.read_bytes()
    journal.append([answer("b", size=size)])
    both = journal.output.read_bytes()
    for end in {len(whole), len(whole) + 1, (len(whole) + len(both)) // 2, len(both) - 1}:
        journal.output.write_bytes(both[:end])
        assert recovered(opened(tmp_path)) == "a"
        assert journal.output.read_bytes() == whole
    journal.output.write_bytes(both)
    assert recovered(opened(tmp_path)) == "ab"


def test_a_first_line_that_was_cut_leaves_an_empty_file(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.output.write_bytes(b'{"custom_id": "a"')
    assert opened(tmp_path).num_answered == 0
    assert journal.output.read_bytes() == b""


def test_a_journal_of_many_answers_takes_few_bytes_of_memory(tmp_path: Path) -> None:
    wide = "\N{GRINNING FACE}" * 508
    opened(tmp_path).append(
        [answer(f"{number:04}{wide}", (200, 400)[number % 2]) for number in range(5000)]
    )
    tracemalloc.start()
    try:
        journal = opened(tmp_path)
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (journal.num_answered, journal.num_failed) == (2500, 2500)
    assert kept_bytes < 100_000
    assert peak_bytes < 1_000_000
