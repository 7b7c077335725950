"""Requests are found again where they are in their file."""

from pathlib import Path

import pytest

from service.batches.lines import IdHashes, InputFile, id_hash
from tests.support.batch_lines import jsonl, line

LINES = [jsonl(line(custom_id)).strip() for custom_id in ("a", "b\N{GRINNING FACE}", "c")]


@pytest.mark.parametrize(
    "ends", [(b"\n", b"\n", b""), (b"\r\n", b"\n\n \n", b"\n"), (b"  \n", b"\n\r\n  ", b"\n \n")]
)
def test_each_line_is_read_where_it_is(tmp_path: Path, ends: tuple[bytes, ...]) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"\n" + b"".join(data + end for data, end in zip(LINES, ends, strict=True)))
    source = InputFile(path, 1000)
    spans = list(source.unanswered(IdHashes()))
    assert [source.read(span) for span in reversed(spans)] == LINES[::-1]
    assert [span.num_bytes for span in spans] == list(map(len, LINES))


def test_answered_requests_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"\n".join(LINES))
    source = InputFile(path, 1000)
    done = IdHashes([id_hash("c"), id_hash("a")])
    assert [source.read(span) for span in source.unanswered(done)] == LINES[1:2]
    assert list(source.unanswered_ids(done)) == ["b\N{GRINNING FACE}"]
