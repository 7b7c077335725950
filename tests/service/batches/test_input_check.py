"""The check of an input file: which lines are refused, by number and code; and where lines are."""

from pathlib import Path

import pytest

from service.batches import worker
from service.batches.worker import InputCheck
from tests.support.batch_runs import CHAT, PREDICT, jsonl, line

MAX_LINE_BYTES = 5_000
LINES = [jsonl(line(custom_id)).strip() for custom_id in ("a", "b\N{GRINNING FACE}", "c")]


def check(folder: Path, content: bytes) -> InputCheck:
    path = folder / "input.jsonl"
    path.write_bytes(content)
    check = InputCheck(PREDICT, MAX_LINE_BYTES)
    check.run(path)
    return check


def accepts(folder: Path, content: bytes, num_requests: int) -> bool:
    checked = check(folder, content)
    return len(checked.places) == num_requests and not checked.errors


def codes(folder: Path, content: bytes) -> list[tuple[str, int | None]]:
    return [(error.code, error.line) for error in check(folder, content).errors]


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
        (b"[" * 4000, "invalid_json_line", None),
        (jsonl({"method": "POST", "url": PREDICT, "body": {}}), "invalid_request", "custom_id"),
        (jsonl(line("")), "invalid_request", "custom_id"),
        (jsonl(line("x" * 513)), "invalid_request", "custom_id"),
        (jsonl(line("\ud800")), "invalid_json_line", None),
        (jsonl(line("b", body=[])), "invalid_request", "body"),
        (jsonl(line("b", CHAT)), "url_mismatch", "url"),
        (jsonl(line("a")), "duplicate_custom_id", "custom_id"),
        (padded(MAX_LINE_BYTES + 1), "invalid_request", None),
        (padded(2 * MAX_LINE_BYTES), "invalid_request", None),
    ],
)
def test_invalid_line_has_number(tmp_path: Path, bad: bytes, code: str, param: str | None) -> None:
    errors = check(tmp_path, jsonl(line("a")) + b"\n" + bad).errors
    assert (errors[0].line, errors[0].code, errors[0].param) == (3, code, param)
    assert errors[0].message.endswith(".")


def test_longest_line_is_accepted(tmp_path: Path) -> None:
    body = jsonl(line("a", body={"seed": 10**400}))
    assert accepts(tmp_path, body + padded(MAX_LINE_BYTES), 2)


def test_file_needs_requests(tmp_path: Path) -> None:
    assert codes(tmp_path, b"\n\n") == [("empty_file", None)]


def test_errors_are_limited(tmp_path: Path) -> None:
    assert codes(tmp_path, b"{\n" * 1000) == [
        ("invalid_json_line", number) for number in range(1, 101)
    ]


@pytest.mark.parametrize("name", ["MAX_REQUESTS", "MAX_BLANK_LINES"])
def test_lines_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(worker, name, 3)
    content = jsonl(*map(line, "abc")) + b"\n" * 3
    assert codes(tmp_path, content) == []
    assert codes(tmp_path, content + jsonl(line("d")) + b"\n") == [("too_many_tasks", None)]


@pytest.mark.parametrize(
    ("ends", "numbers"),
    [
        ((b"\n", b"\n", b""), [2, 3, 4]),
        ((b"\r\n", b"\n\n \n", b"\n"), [2, 3, 6]),
        ((b"  \n \t", b"\n\r\n  ", b"\n \n"), [2, 3, 5]),
    ],
)
def test_places_of_requests(tmp_path: Path, ends: tuple[bytes, ...], numbers: list[int]) -> None:
    content = b"\n" + b"".join(data + end for data, end in zip(LINES, ends, strict=True))
    places = check(tmp_path, content).places
    lines = [content[place.start : place.start + place.num_bytes] for place in places]
    assert lines == LINES
    assert [place.number for place in places] == numbers
