"""The log of a long run: what a killed process leaves, large values, locks."""

import json
from pathlib import Path
from typing import Any

import pytest

from diptych_client.long_runs import BLOCK_BYTES, AppendLog, RunError

VALUES: list[dict[str, Any]] = [{"image": "a.png", "n": 1}, {"image": "größer.png", "n": None}, {}]
LINES = "".join(f"{json.dumps(value)}\n" for value in VALUES).encode()


def logged(path: Path, *values: dict[str, Any]) -> list[int]:
    with AppendLog.open(path, "image") as log:
        return [log.append(value) for value in values]


def read(path: Path) -> list[dict[str, Any]]:
    with AppendLog.open(path, "image") as log:
        return [value for _, value in log.values()]


def test_values_are_read_in_their_order_and_by_their_offsets(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "deeper" / "log"
    offsets = logged(path, *VALUES[:2])
    offsets += logged(path, VALUES[2])
    with AppendLog.open(path, "image") as log:
        assert list(log.values()) == list(zip(offsets, VALUES, strict=True))
        assert [log.value(offset) for offset in reversed(offsets)] == VALUES[::-1]
    assert path.read_bytes() == LINES


@pytest.mark.parametrize("num_bytes", [BLOCK_BYTES + change for change in (-1, 0, 1)])
def test_a_value_of_about_a_block_is_found_between_others(tmp_path: Path, num_bytes: int) -> None:
    overhead = len(json.dumps({"text": ""}))
    large = {"text": "x" * (num_bytes - overhead)}
    first, second, third = logged(tmp_path / "log", VALUES[0], large, VALUES[1])
    with AppendLog.open(tmp_path / "log", "image") as log:
        assert log.value(second) == large
        assert (log.value(first), log.value(third)) == (VALUES[0], VALUES[1])


@pytest.mark.parametrize("num_written", [1, 20, BLOCK_BYTES, 2 * BLOCK_BYTES + 5])
def test_a_line_that_a_killed_process_was_writing_is_removed(
    tmp_path: Path, num_written: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(LINES + b"x" * num_written)
    assert read(path) == VALUES
    assert path.read_bytes() == LINES
    (offset,) = logged(path, {"n": 2})
    assert offset == len(LINES)
    assert read(path) == [*VALUES, {"n": 2}]


@pytest.mark.parametrize("num_written", [0, 1, 12, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_a_log_without_a_whole_line_is_empty(tmp_path: Path, num_written: int) -> None:
    line = b'{"image": "' + b"x" * BLOCK_BYTES
    (tmp_path / "log").write_bytes(line[:num_written])
    assert read(tmp_path / "log") == []
    assert (tmp_path / "log").read_bytes() == b""
    assert logged(tmp_path / "log", VALUES[0]) == [0]


@pytest.mark.parametrize("text", ["notes", '{"key": 1}', "\n", '{"images": []}\n'])
def test_a_file_that_is_not_a_log_is_refused_unchanged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(RunError, match="log is not a log of this command"):
        logged(path, VALUES[0])
    assert path.read_text() == text


def test_a_line_that_is_not_json_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(LINES + b"{\n")
    with (
        AppendLog.open(path, "image") as log,
        pytest.raises(RunError, match="log, line 4: invalid JSON"),
    ):
        list(log.values())


def test_a_log_is_open_once_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with AppendLog.open(path, "image") as log:
        with pytest.raises(RunError, match="log is locked by another process"):
            AppendLog.open(path, "image").__enter__()
        log.append(VALUES[0])
    with AppendLog.open(path, "image") as other:
        assert [value for _, value in other.values()] == VALUES[:1]
