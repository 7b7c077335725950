"""The check of an input file: which lines are refused, by number and code."""

import json
import tracemalloc
from pathlib import Path

import pytest

from service.batches import validation
from service.batches.validation import Checked, check_file
from service.batches.wire import Endpoint
from tests.support.batch_lines import CHAT, PREDICT, jsonl, line
from tests.support.core_calls import run

MAX_LINE_BYTES = 5_000
WIDE = "\N{GRINNING FACE}" * 508  # four bytes each in UTF-8, and in memory


def check(tmp_path: Path, content: bytes, endpoint: Endpoint = PREDICT) -> Checked:
    path = tmp_path / "input.jsonl"
    path.write_bytes(content)
    return run(check_file(path, endpoint, MAX_LINE_BYTES))


def test_requests_are_counted_and_blank_lines_are_not(tmp_path: Path) -> None:
    content = jsonl(line("a")) + b"\n  \r\n" + jsonl(line("b")).rstrip(b"\n")
    assert check(tmp_path, content) == Checked(2, [])


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xff", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'{"custom_id": "b", "custom_id": "c"}', "invalid_json_line", None),
        (b"[" * 4000, "invalid_json_line", None),
        (jsonl({"method": "POST", "url": PREDICT, "body": {}}), "invalid_request", "custom_id"),
        (jsonl(line("")), "invalid_request", "custom_id"),
        (jsonl(line("x" * 513)), "invalid_request", "custom_id"),
        (jsonl(line(1)), "invalid_request", "custom_id"),
        (jsonl(line("\ud800")), "invalid_request", "custom_id"),
        (jsonl(line("b", "\ud800")), "url_mismatch", "url"),
        (jsonl({**line("b"), "\ud800": 1}), "invalid_request", "the document"),
        (jsonl(line("b", method="GET")), "invalid_request", "method"),
        (jsonl(line("b", body=[])), "invalid_request", "body"),
        (jsonl(line("b", priority=1)), "invalid_request", "priority"),
        (jsonl(line("b", CHAT)), "url_mismatch", "url"),
        (jsonl(line("a")), "duplicate_custom_id", "custom_id"),
        (jsonl(line("b", body={"image": "x" * MAX_LINE_BYTES})), "invalid_request", None),
    ],
)
def test_an_invalid_line_is_named_by_its_number(
    tmp_path: Path, bad: bytes, code: str, param: str | None
) -> None:
    errors = check(tmp_path, jsonl(line("a")) + b"\n" + bad).errors
    assert (errors[0].line, errors[0].code, errors[0].param) == (3, code, param)
    assert errors[0].message.endswith(".")


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    assert [error.code for error in check(tmp_path, b"\n\n").errors] == ["empty_file"]


def test_errors_are_limited(tmp_path: Path) -> None:
    errors = check(tmp_path, b"{\n" * 1000).errors
    assert [error.line for error in errors] == list(range(1, 101))


def test_too_many_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_LINES", 3)
    assert check(tmp_path, jsonl(*map(line, "abc"))).errors == []
    assert [error.code for error in check(tmp_path, jsonl(*map(line, "abcd"))).errors] == [
        "too_many_tasks"
    ]


def test_a_large_file_is_checked_in_pieces(tmp_path: Path) -> None:
    lines = [line(str(number), body={"image": "x" * 4000}) for number in range(600)]
    assert check(tmp_path, jsonl(*lines)) == Checked(600, [])


def test_blank_lines_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_MAX_BLANK_LINES", 3)
    assert check(tmp_path, jsonl(line("a")) + b"\n" * 3).errors == []
    assert [error.code for error in check(tmp_path, b"\n" * 4 + jsonl(line("a"))).errors] == [
        "too_many_tasks"
    ]


def test_a_body_is_not_checked(tmp_path: Path) -> None:
    assert check(tmp_path, jsonl(line("a", body={"\ud800": "\ud800", "seed": 10**400}))) == Checked(
        1, []
    )


def test_ids_are_checked_in_a_part_of_the_memory_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_text(
        "".join(json.dumps(line(f"{n:04}{WIDE}"), ensure_ascii=False) + "\n" for n in range(5000))
    )
    tracemalloc.start()
    try:
        assert run(check_file(path, PREDICT, MAX_LINE_BYTES)) == Checked(5000, [])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 10_000_000
    assert peak_bytes < 2_000_000
