"""One row of the output, an answer or an error, and its place in both formats."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

ShardFormat = Literal["parquet", "jsonl"]

_ERROR = pa.struct([("code", pa.string()), ("message", pa.string())])
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("result", pa.string()),  # JSON: its form depends on the task
        pa.field("raw_text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("calibrated", pa.bool_()),
        pa.field("left_out", pa.int32()),
        pa.field("error", _ERROR),
    ]
)


@dataclass(frozen=True, slots=True)
class RowError:
    """Code and message of an image that has no answer."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Row:
    """The answer for one image, with the fields of an answer of the service, or its error."""

    key: str
    model: str
    task: str
    width: int | None = None  # the upright image, px; unset if its header is unreadable
    height: int | None = None
    result: Mapping[str, Any] | None = None
    raw_text: str | None = None
    finish_reason: str | None = None
    calibrated: bool | None = None
    left_out: int | None = None  # objects that `min_precision` did not keep
    error: RowError | None = None


def write_rows(stream: IO[bytes], rows: Sequence[Row], shard_format: ShardFormat) -> None:
    records = [asdict(row) for row in rows]
    if shard_format == "jsonl":
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        return
    for record in records:
        if record["result"] is not None:
            record["result"] = json.dumps(record["result"], ensure_ascii=False)
    pq.write_table(pa.Table.from_pylist(records, _SCHEMA), stream, compression="zstd")


def read_rows(stream: IO[bytes], shard_format: ShardFormat) -> Iterator[Row]:
    records: Iterable[dict[str, Any]]
    if shard_format == "jsonl":
        records = map(json.loads, stream)
    else:
        # One thread: pyarrow 26 releases a Python stream late in another thread, which aborts the
        # process if the interpreter is ending.
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        records = parquet.read(use_threads=False).to_pylist()
    for record in records:
        if isinstance(record["result"], str):
            record["result"] = json.loads(record["result"])
        error = record.pop("error")
        yield Row(**record, error=None if error is None else RowError(**error))
