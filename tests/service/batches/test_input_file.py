"""The check of an input file: which lines are refused, by number and code; and where lines are."""

import json
import tracemalloc
from pathlib import Path

import pytest

from service.batches import input_file
from service.batches.input_file import InputFile, check_file
from service.batches.wire import BatchError
from tests.support.batch_runs import CHAT, PREDICT, jsonl, line
from tests.support.core_calls import run

MAX_LINE_BYTES = 5_000
LINES = [jsonl(line(custom_id)).strip() for custom_id in ("a", "b\N{GRINNING FACE}", "c")]


def source(folder: Path, content: bytes) -> InputFile:
    path = folder / "input.jsonl"
    path.write_bytes(content)
    return InputFile(path, MAX_LINE_BYTES)


def check(folder: Path, content: bytes) -> tuple[int, list[BatchError]]:
    checks = run(check_file(source(folder, content), PREDICT))
    return checks.num_requests, checks.errors


def codes(folder: Path, content: bytes) -> list[tuple[str, int | None]]:
    _, errors = check(folder, content)
    return [(error.code, error.line) for error in errors]


def test_blank_lines_are_not_requests(tmp_path: Path) -> None:
    content = jsonl(line("a")) + b"\n  \r\n" + jsonl(line("b")).rstrip(b"\n")
    assert check(tmp_path, content) == (2, [])


def padded(num_bytes: int) -> bytes:
    """Return a request of so many bytes."""
    data = jsonl(line("long", body={"image": ""})).strip()
    return data.replace(b'""', b'"%s"' % (b"x" * (num_bytes - len(data))))


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
        (jsonl(line("\ud800")), "invalid_request", "custom_id"),
        (jsonl(line("b", "\ud800")), "url_mismatch", "url"),
        (jsonl({**line("b"), "\ud800": 1}), "invalid_request", "the document"),
        (jsonl(line("b", body=[])), "invalid_request", "body"),
        (jsonl(line("b", CHAT)), "url_mismatch", "url"),
        (jsonl(line("a")), "duplicate_custom_id", "custom_id"),
        (padded(MAX_LINE_BYTES + 1), "invalid_request", None),
        (padded(2 * MAX_LINE_BYTES), "invalid_request", None),
    ],
)
def test_invalid_line_has_number(tmp_path: Path, bad: bytes, code: str, param: str | None) -> None:
    errors = check(tmp_path, jsonl(line("a")) + b"\n" + bad)[1]
    assert (errors[0].line, errors[0].code, errors[0].param) == (3, code, param)
    assert errors[0].message.endswith(".")


def test_longest_line_is_accepted(tmp_path: Path) -> None:
    body = jsonl(line("a", body={"\ud800": "\ud800", "seed": 10**400}))
    assert check(tmp_path, body + padded(MAX_LINE_BYTES)) == (2, [])


def test_file_needs_requests(tmp_path: Path) -> None:
    assert codes(tmp_path, b"\n\n") == [("empty_file", None)]


def test_errors_are_limited(tmp_path: Path) -> None:
    assert codes(tmp_path, b"{\n" * 1000) == [
        ("invalid_json_line", number) for number in range(1, 101)
    ]
    # the first line has one error, each further one has two
    assert len(codes(tmp_path, jsonl(*[line("a", CHAT)] * 60))) == 100


@pytest.mark.parametrize("name", ["MAX_REQUESTS", "MAX_BLANK_LINES"])
def test_lines_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(input_file, name, 3)
    content = jsonl(*map(line, "abc")) + b"\n" * 3
    assert codes(tmp_path, content) == []
    assert codes(tmp_path, content + jsonl(line("d")) + b"\n") == [("too_many_tasks", None)]


def test_large_file_is_checked_in_pieces(tmp_path: Path) -> None:
    lines = [line(str(number), body={"image": "x" * 4000}) for number in range(600)]
    assert check(tmp_path, jsonl(*lines)) == (600, [])


def test_ids_take_little_memory(tmp_path: Path) -> None:
    wide = "\N{GRINNING FACE}" * 508  # four bytes each in UTF-8, and in memory
    documents = (json.dumps(line(f"{n:04}{wide}"), ensure_ascii=False) for n in range(5000))
    file = source(tmp_path, "".join(f"{document}\n" for document in documents).encode())
    tracemalloc.start()
    try:
        assert run(check_file(file, PREDICT)).num_requests == 5000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2_000_000 < file.path.stat().st_size / 5


@pytest.mark.parametrize(
    ("ends", "numbers"),
    [
        ((b"\n", b"\n", b""), [2, 3, 4]),
        ((b"\r\n", b"\n\n \n", b"\n"), [2, 3, 6]),
        ((b"  \n \t", b"\n\r\n  ", b"\n \n"), [2, 3, 5]),
    ],
)
def test_each_line_is_read_where_it_is(
    tmp_path: Path, ends: tuple[bytes, ...], numbers: list[int]
) -> None:
    content = b"\n" + b"".join(data + end for data, end in zip(LINES, ends, strict=True))
    file = source(tmp_path, content)
    places = list(file.unanswered(bytearray(9)))
    assert [file.read(place) for place in reversed(places)] == LINES[::-1]
    assert [place.num_bytes for place in places] == list(map(len, LINES))
    assert [place.number for place in places] == numbers


def test_answered_requests_are_left_out(tmp_path: Path) -> None:
    file = source(tmp_path, b"\n".join(LINES))
    assert [file.read(place) for place in file.unanswered(bytearray(b"\0\1\0\1"))] == [LINES[1]]
