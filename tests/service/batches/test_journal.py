"""The lines of an output file that a crash left complete are read; a cut one is removed."""

from pathlib import Path

import pytest

from service.batches.journal import Journal
from service.batches.lines import OutputError, OutputLine, OutputResponse


def answer(custom_id: str, status: int = 200, size: int = 1) -> OutputLine:
    response = OutputResponse(status_code=status, request_id="r", body={"text": "x" * size})
    return OutputLine(id="b", custom_id=custom_id, response=response)


def opened(folder: Path) -> Journal:
    return Journal.open(folder / "output", folder / "errors")


def test_answers_and_errors_are_found_in_their_files(tmp_path: Path) -> None:
    opened(tmp_path).append(
        [answer("a"), answer("b", 404), OutputLine(id="b", custom_id="c", response=None, error=OutputError())]
    )
    again = opened(tmp_path)
    assert (again.answered, again.failed) == ({"a"}, {"b", "c"})


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
        assert opened(tmp_path).answered == {"a"}
        assert journal.output.read_bytes() == whole
    journal.output.write_bytes(both)
    assert opened(tmp_path).answered == {"a", "b"}


def test_a_first_line_that_was_cut_leaves_an_empty_file(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.output.write_bytes(b'{"custom_id": "a"')
    assert opened(tmp_path).answered == set()
    assert journal.output.read_bytes() == b""
