"""A job, and its output folder: the manifest, the rows, and the attempts at shards.

    job.json                 the manifest, by which a later run recognises the job
    part-00000012.parquet    the rows of one shard, in the order of the input; or .jsonl
    annotations.json         COCO only: all shards, written at the end
    .incomplete/             files being written, and attempts at shards:
        part-00000012.attempt-0001    empty: images are in progress together
        part-00000012.attempt-0002    the position of the image that is in progress alone

A file gets its name when it is complete: it is there with all its rows, or not at all.

The first attempt answers the images of a shard together. If its worker dies, further attempts
answer them one by one, alone in their worker, and write the position of each before it begins. A
worker that dies then was killed by that image, which no further attempt answers: the shard has one
image less after every death, so that the run ends.
"""

import json
import posixpath
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import IO, Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3
from pycocotools import mask as coco_mask

from offline.filesystems import InputError, file_system
from service.inference.models import ServedModel
from service.settings import Settings

OutputFormat = Literal["parquet", "jsonl", "coco"]
ShardFormat = Literal["parquet", "jsonl"]
_VERSION = 2
_MANIFEST = "job.json"
_INCOMPLETE = ".incomplete"
_PREFIX = "part-"
COCO_NAME = "annotations.json"
_UNNAMED = "object"  # the category of a task without labels
_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "model": pa.string(),
        "task": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "result": pa.string(),  # JSON: its form depends on the task
        "raw_text": pa.string(),
        "finish_reason": pa.string(),
        "calibrated": pa.bool_(),
        "familiarity": pa.float64(),
        "left_out": pa.int32(),
        "error": pa.struct({"code": pa.string(), "message": pa.string()}),
    }
)


def build_of(
    model: ServedModel, fields: Mapping[str, Any], settings: Settings
) -> dict[str, object]:
    """Return all that determines the answers of this host: artifacts, catalog, settings."""
    tasks = [str(step["task"]) for step in fields.get("steps", [fields])]
    calibrations = ""
    for (task, _), calibration in sorted(model.calibrations.items()):  # without and with tiles
        if task in tasks:
            calibrations += repr(calibration)
    if "min_precision" in json.dumps(fields):
        calibrations += "".join(repr(proof.proof) for proof in model.proofs)
    return {
        "model": model.id,
        "build_key": model.version,
        "precision": model.precision,
        "calibration": blake3(calibrations.encode()).hexdigest() if calibrations else None,
        # the catalog's own prompts for the tasks
        "template": "\n".join(filter(None, map(model.entry.templates.get, tasks))) or None,
        "one_name_per_prompt": model.entry.one_name_per_prompt,
        "max_image_pixels": settings.max_image_pixels,
        "decoder_max_positions": settings.decoder_max_positions,
    }


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that determines the rows of the output, and which shard has them."""

    build: Mapping[str, Any]  # of `build_of`
    fields: Mapping[str, Any]  # the request's: task included, or steps
    output_format: OutputFormat
    shard_size: int
    num_shards: int
    images: str  # hash of which images are in which shard

    @property
    def shard_format(self) -> ShardFormat:
        return "jsonl" if self.output_format == "jsonl" else "parquet"

    def manifest(self) -> str:
        values = asdict(self)
        document = {"version": _VERSION, **values.pop("build"), **values}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def check(self, manifest: str, place: str) -> None:
        """Raise `InputError` if a manifest is that of another job, with the values that differ."""
        try:
            theirs: dict[str, Any] = dict(json.loads(manifest))
        except (ValueError, TypeError) as error:
            raise InputError(f"{place} is not a manifest: {error}") from error
        if differing := differences(theirs, json.loads(self.manifest())):
            problem = f"the output is of another job ({differing})"
            raise InputError(f"{problem}; choose another folder: {place}")


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return the values that differ, by name; empty if there are none."""
    text_of = partial(json.dumps, ensure_ascii=False)
    parts = []
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            parts.append(f"{name}: {text_of(before.get(name))}, now {text_of(now.get(name))}")
    return "; ".join(parts)


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
    familiarity: float | None = None  # p-value that the image is like those of the calibration
    left_out: int | None = None  # objects that `min_precision` did not keep
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """The output of one job at a path or URI."""

    uri: str
    job: Job
    overwrite: bool = False

    def begin(self) -> frozenset[int]:
        """Write or check the manifest, and return the shards that are done; raise `InputError`."""
        files, folder = file_system(self.uri)
        files.makedirs(folder, exist_ok=True)
        present = {posixpath.basename(path) for path in files.ls(folder, detail=False)}
        if _MANIFEST in present:
            self.job.check(files.cat_file(self.path(_MANIFEST)).decode(), self.path(_MANIFEST))
        elif present - {_INCOMPLETE} and not self.overwrite:
            raise InputError(
                f"{self.uri} has files but no {_MANIFEST}; choose an empty folder, or one of this"
                " command, or give --overwrite to replace files"
            )
        else:
            present = set()
        self.remove_incomplete()
        if _MANIFEST not in present:
            self.write(_MANIFEST, lambda stream: stream.write(self.job.manifest().encode()))
        indices = range(self.job.num_shards)
        return frozenset(index for index in indices if self._name(index) in present)

    def remove_incomplete(self) -> None:
        """Remove what killed processes have left."""
        files, _ = file_system(self.uri)
        if files.exists(self.path(_INCOMPLETE)):
            files.rm(self.path(_INCOMPLETE), recursive=True)

    def write_shard(self, index: int, rows: Sequence[Row]) -> None:
        shard_format = self.job.shard_format
        self.write(self._name(index), lambda stream: write_rows(stream, rows, shard_format))

    def write(self, name: str, content: Callable[[IO[bytes]], object]) -> None:
        """Write a file completely, or not at all; it replaces one of the same name."""
        files, _ = file_system(self.uri)
        # a worker may be lost, and live on
        incomplete = self.path(f"{_INCOMPLETE}/{name}.{uuid.uuid4().hex}")
        files.makedirs(self.path(_INCOMPLETE), exist_ok=True)
        with files.open(incomplete, "wb") as stream:
            content(stream)
        files.mv(incomplete, self.path(name))

    def rows(self) -> Iterator[Row]:
        """Yield all rows; one shard at a time is in memory."""
        for index in range(self.job.num_shards):
            with file_system(self.uri)[0].open(self.path(self._name(index)), "rb") as stream:
                yield from read_rows(stream, self.job.shard_format)

    def counts(self) -> tuple[int, int]:
        """Return the number of images, and of those that failed."""
        are_failed = Counter(row.error is not None for row in self.rows())
        return are_failed.total(), are_failed[True]

    def _name(self, index: int) -> str:
        return f"{_PREFIX}{index:08}.{self.job.shard_format}"

    def path(self, name: str) -> str:
        return posixpath.join(file_system(self.uri)[1], name)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a shard; `deaths` counts the workers that died alone with an image."""

    output: Output
    index: int  # the shard
    number: int = 1
    deaths: Counter[int] = field(default_factory=Counter)

    @classmethod
    def begin(cls, output: Output, index: int) -> Self:
        """Read the attempts whose workers died, and record this one."""
        files, _ = file_system(output.uri)
        deaths = Counter[int]()
        attempt = cls(output, index)
        while files.exists(attempt._path):
            if position := files.cat_file(attempt._path):
                deaths[int(position)] += 1
            attempt = cls(output, index, attempt.number + 1, deaths)
        files.makedirs(posixpath.dirname(attempt._path), exist_ok=True)
        files.pipe_file(attempt._path, b"")
        return attempt

    def record(self, position: int) -> None:
        """Record that the image of a position is read and answered next."""
        file_system(self.output.uri)[0].pipe_file(self._path, str(position).encode())

    def end(self) -> None:
        """Forget all attempts: the shard is written."""
        files, _ = file_system(self.output.uri)
        for number in range(1, self.number + 1):
            # a worker that was taken for dead may have ended its own
            with suppress(FileNotFoundError):
                files.rm_file(Attempt(self.output, self.index, number)._path)

    @property
    def _path(self) -> str:
        return self.output.path(f"{_INCOMPLETE}/part-{self.index:08}.attempt-{self.number:04}")


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


def write_coco(output: Output) -> None:
    category_ids: dict[str, int] = {}

    def write(stream: IO[bytes]) -> None:
        stream.write(b'{"images": [')
        _write_list(stream, _images(output))
        stream.write(b'], "annotations": [')
        _write_list(stream, _annotations(output, category_ids))
        categories = [{"id": number, "name": name} for name, number in category_ids.items()]
        text = json.dumps(categories, ensure_ascii=False)
        stream.write(b'], "categories": ' + text.encode() + b"}\n")

    output.write(COCO_NAME, write)


def _write_list(stream: IO[bytes], values: Iterator[dict[str, Any]]) -> None:
    for index, value in enumerate(values):
        stream.write((b",\n" if index else b"\n") + json.dumps(value, ensure_ascii=False).encode())


def _images(output: Output) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(output.rows(), 1):
        if row.error is None:
            yield {"id": number, "file_name": row.key, "width": row.width, "height": row.height}


def _annotations(output: Output, category_ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Yield the annotation of every object; new categories are added to `category_ids`."""
    annotation_id = 0
    for image_id, row in enumerate(output.rows(), 1):
        result = row.result or {}
        objects: list[dict[str, Any]] = result.get("detections") or result.get("instances") or []
        for value in objects:
            annotation_id += 1
            category_id = category_ids.setdefault(value["label"] or _UNNAMED, len(category_ids) + 1)
            ids = {"id": annotation_id, "image_id": image_id, "category_id": category_id}
            x1, y1, x2, y2 = value["box"]
            bbox = [x1, y1, x2 - x1, y2 - y1]
            shape = {"bbox": bbox, "area": bbox[2] * bbox[3], "segmentation": []}
            if mask := value.get("mask"):
                shape |= {"area": int(coco_mask.area(mask)), "segmentation": mask}
            yield {**ids, **shape, "score": value["score"], "iscrowd": 0}
