"""The answerer over a fake runner: what is in progress at a time, and which error is in which
row.
"""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from offline.command import read_steps
from offline.filesystems import InputError
from offline.output import Attempt, Output, Row, RowError
from offline.pipeline import Answerer, Pool
from offline.shards import FilesShard, InputImage
from service.inference.models import ServedProof
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.runner_calls import RunnerClient
from service.settings import Settings
from tasks.scores import Proof
from tests.offline.test_output import JOB
from tests.support.catalog import FLORENCE
from tests.support.export_cli import ModelStore
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder
from tests.support.fake_service import FLORENCE_ANSWERS, PNG, served
from tests.support.image_files import png
from wire.runner_messages import Failed, Outcome, SequenceSpec

OTHER_BUILD = """
import asyncio
from offline.pipeline import load_answerer
from offline.output import Job, build_of
from service.inference.served_models import load_served_models
from service.settings import read_settings

settings = read_settings({"DIPTYCH_MODELS": "florence-2-mini"})
model = load_served_models(settings)["florence-2-mini"]
fields = {"task": "object_detection"}
build = build_of(model, fields, settings)
assert build["calibration"] is not None
assert build_of(model, {"task": "captioning"}, settings)["calibration"] is None
job = Job({**build, "build_key": "theirs"}, fields, "jsonl", 1, 1, "")
asyncio.run(load_answerer(job, settings))
"""
SETTINGS = Settings(decoder_max_batch_size=2)
NUM_PLACES = 4  # two for each slot
CAPTION = "What does the image describe?"
T = TypeVar("T")


@dataclass(slots=True)
class CountingDecoder(FakeDecoder):
    """Counts the images that are read or answered at the same time."""

    num_in_progress: int = 0
    maximum: int = 0
    # images in progress fill all places
    is_full: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        self.num_in_progress += 1
        self.maximum = max(self.maximum, self.num_in_progress)
        if self.num_in_progress == NUM_PLACES:
            self.is_full.set()
        try:
            await asyncio.sleep(0)
            return await FakeDecoder.write(self, image_features, sequences)
        finally:
            self.num_in_progress -= 1


@dataclass(frozen=True, slots=True)
class ListedShard(FilesShard):
    """Images in memory; `reads` is called as the images are iterated over."""

    listed: tuple[InputImage, ...] = ()
    on_read: Callable[[str], None] = field(default=lambda _: None)

    def describe(self) -> str:
        return "the shard"

    def images(self):  # type: ignore[no-untyped-def]
        for image in self.listed:
            self.on_read(image.key)
            yield image


def shard(*images: InputImage, on_read: Callable[[str], None] = lambda _: None) -> ListedShard:
    return ListedShard((), images, on_read)


def image(key: str, content: bytes | Exception = PNG) -> InputImage:
    def read() -> bytes:
        if isinstance(content, Exception):
            raise content
        return content

    return InputImage(key, read)


def images(num_images: int, prefix: str = "") -> list[InputImage]:
    return [image(f"{prefix}{index}") for index in range(num_images)]


def run(
    work: Callable[[Answerer], Awaitable[T]],
    decoder: FakeDecoder,
    proofs: tuple[ServedProof, ...] = (),
    **fields: Any,
) -> T:
    """Return what `work` returns with an answerer over the decoder."""
    model = replace(served(FLORENCE), proofs=proofs)
    fields = fields or {"task": "captioning"}

    async def main() -> T:
        channel = FakeChannel(FakeEncoder(), decoder, max_cache_bytes=0)
        return await work(Answerer(model, RunnerClient(FLORENCE.id, channel), fields, SETTINGS))

    return asyncio.run(main())


def rows_of(*listed: InputImage, decoder: FakeDecoder | None = None, **options: Any) -> list[Row]:
    async def work(answerer: Answerer) -> list[Row]:
        return await answerer.rows(shard(*listed))

    return run(work, decoder or FakeDecoder(FLORENCE_ANSWERS), **options)


def codes(rows: Sequence[Row]) -> list[str | None]:
    return [None if row.error is None else row.error.code for row in rows]


def attempt(tmp_path: Path, **deaths: int) -> Attempt:
    output = Output(str(tmp_path / "out"), JOB)
    output.begin()
    counted = Counter({int(name[1:]): count for name, count in deaths.items()})
    return replace(Attempt.begin(output, 0), deaths=counted)


def position(tmp_path: Path) -> str:
    return (tmp_path / "out" / ".incomplete" / "part-00000000.attempt-0001").read_text()


def test_rows_of_a_shard() -> None:
    """They are in the order of the input; a failed one has the error, and the size if known."""
    first, *failed = rows_of(
        image("0"),
        image("missing", FileNotFoundError("no file")),
        image("cut off", OSError("it is cut off")),
        image("text", b"text"),
        image("large", png(12_000, 9_000, 8, 2, b"")),
        image("defect", ZeroDivisionError("secret")),
    )
    expected = Row("0", FLORENCE.id, "captioning", 640, 480, {"text": "a red circle"})
    options = {"raw_text": "a red circle", "finish_reason": "stop", "calibrated": False}
    assert first == replace(expected, **options)  # type: ignore[arg-type]
    assert [row.key for row in failed] == ["missing", "cut off", "text", "large", "defect"]
    unreadable = ["unreadable_input"] * 2
    assert codes(failed) == [*unreadable, "unsupported_image", "image_too_large", "internal"]
    messages = [row.error and row.error.message for row in failed]
    assert messages[:2] == ["no file", "it is cut off"]
    assert messages[4] == f"{FLORENCE.id} failed: ZeroDivisionError; the log has the cause"
    assert (failed[2].width, failed[3].width) == (None, None)
    for row in failed:
        assert (row.model, row.task, row.result) == (FLORENCE.id, "captioning", None)
    decoder = FakeDecoder({CAPTION: Failed(code="overloaded", message="full")})
    (row,) = rows_of(image("0"), decoder=decoder)
    error = RowError("overloaded", "full; retry after 1 s")
    assert (row.width, row.height, row.error) == (640, 480, error)


def test_shards_share_the_places() -> None:
    keys: list[str] = []
    decoder = CountingDecoder(FLORENCE_ANSWERS)

    async def work(answerer: Answerer) -> None:
        decoder.released = asyncio.Event()
        shards = [shard(*images(10, prefix), on_read=keys.append) for prefix in "ab"]
        answered = asyncio.gather(*map(answerer.rows, shards))
        await decoder.is_full.wait()
        assert len(keys) == NUM_PLACES
        decoder.released.set()
        assert [len(rows) for rows in await answered] == [10, 10]

    run(work, decoder)
    assert decoder.maximum == NUM_PLACES


def test_failed_images_free_their_places() -> None:
    broken = [image(str(index), OSError("broken")) for index in range(3 * NUM_PLACES)]

    async def work(answerer: Answerer) -> None:
        for _ in range(2):
            async with asyncio.timeout(10):
                assert len(await answerer.rows(shard(*broken))) == len(broken)

    run(work, FakeDecoder({}))


def test_one_by_one_records_before_reading(tmp_path: Path) -> None:
    keys: list[str] = []
    has_read = threading.Event()
    decoder = CountingDecoder(FLORENCE_ANSWERS)

    def on_read(key: str) -> None:
        assert (decoder.num_in_progress, position(tmp_path)) == (0, key)
        keys.append(key)
        has_read.set()

    async def work(answerer: Answerer) -> None:
        decoder.released = asyncio.Event()
        attempts = attempt(tmp_path), attempt(tmp_path / "other")
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            together = group.create_task(answerer.rows(shard(*images(2 * NUM_PLACES, "beside "))))
            await decoder.is_full.wait()
            one_by_one = answerer.rows_one_by_one
            first = group.create_task(one_by_one(shard(*images(6), on_read=on_read), attempts[0]))
            second = group.create_task(one_by_one(shard(*images(1)), attempts[1]))
            assert not await asyncio.to_thread(has_read.wait, 0.2)  # both wait for all places
            decoder.released.set()
        assert [row.key for row in first.result()] == keys == [str(index) for index in range(6)]
        rows = [*first.result(), *second.result(), *together.result()]
        assert codes(rows) == [None] * (7 + 2 * NUM_PLACES)

    run(work, decoder)


def test_killer_image_is_not_answered_again(tmp_path: Path) -> None:
    listed = images(4)
    listed[2] = image("killer", AssertionError("it was read"))

    async def work(answerer: Answerer) -> None:
        rows = await answerer.rows_one_by_one(shard(*listed), attempt(tmp_path, _2=1))
        assert codes(rows) == [None, None, "worker_died", None]
        assert (rows[2].key, rows[2].model, rows[2].task) == ("killer", FLORENCE.id, "captioning")
        assert len(await answerer.rows(shard(*images(9)))) == 9  # all places are free again

    run(work, CountingDecoder(FLORENCE_ANSWERS))


def test_file_whose_reading_kills_is_a_row(tmp_path: Path) -> None:
    keys: list[str] = []

    async def work(answerer: Answerer) -> None:
        listed = shard(*images(4), on_read=keys.append)
        rows = await answerer.rows_one_by_one(listed, attempt(tmp_path, _2=2))
        assert codes(rows) == [None, None, "worker_died"]
        assert rows[2].key == "the shard: the rest cannot be read"
        assert keys == ["0", "1"]
        with pytest.raises(RuntimeError, match="the shard: its worker died 3 times at image 2"):
            await answerer.rows_one_by_one(listed, attempt(tmp_path, _2=3))

    run(work, FakeDecoder(FLORENCE_ANSWERS))


def test_other_build_is_refused(exported: ModelStore) -> None:
    run = exported.forked("-c", OTHER_BUILD)
    ours = json.loads((exported.newest(FLORENCE.id) / "manifest.json").read_text())["build_key"]
    assert f'another build than the job (build_key: "theirs", now "{ours}")' in run.stderr


def test_row_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "steps.yaml"
    things, close = "id: things, task: object_detection", "id: close, task: ocr, each: things"
    path.write_text(f"[{{{things}}}, {{{close}, view: crop}}]")
    with pytest.raises(InputError, match="cannot be read"):
        read_steps(str(tmp_path), FLORENCE.id)
    steps = read_steps(str(path), FLORENCE.id)
    rows = rows_of(image("0"), image("text", b"text"), steps=steps)
    assert [(row.key, row.task) for row in rows] == [("0", "analyze"), ("text", "analyze")]
    assert codes(rows) == [None, "unsupported_image"]
    assert (rows[0].width, rows[0].height) == (640, 480)
    detected, read = (rows[0].result or {})["steps"]
    assert detected["answers"][0]["result"]["detections"][0]["label"] == "red circle"
    (answer,) = read["answers"]
    assert answer.pop("view") == [38, 77, 346, 308]
    assert answer.pop("result") == {"text": "HELLO"}
    names = "of model raw_text finish_reason calibrated familiarity"
    assert answer.keys() == set(names.split())


def test_row_counts_what_a_proof_leaves_out() -> None:
    fields: dict[str, Any] = {"task": "object_detection"}
    _, request = parse_fields(PredictFields, fields)
    proof = ServedProof(Proof(FLORENCE.id, "", "", "", fields, 0.9, 0.95, 0.99, 1, 80), request)
    (row,) = rows_of(image("0"), proofs=(proof,), min_precision=0.9, **fields)
    assert (row.result, row.left_out) == ({"detections": []}, 1)


GPU_HOST = {"CPU": 16.0, "GPU": 4.0}
HOST = {"CPU": 8.0}
HEAD = {"CPU": 0.0}  # a head of a cluster that runs no actors


@pytest.mark.parametrize(
    ("hosts", "device", "num_actors", "pool"),
    [
        ([GPU_HOST, GPU_HOST], "auto", None, Pool(8, 1, 1)),
        ([GPU_HOST, HOST], "cuda", 8, Pool(8, 1, 0.5)),
        ([GPU_HOST, HOST], "cpu", None, Pool(2, 8, 0)),
        ([HEAD, HOST, HOST], "auto", None, Pool(2, 8, 0)),
        ([HOST, HOST], "auto", 4, Pool(4, 4, 0)),
        ([HOST, HOST], "auto", 1, Pool(1, 8, 0)),
    ],
)
def test_pool_size(
    hosts: list[dict[str, float]], device: str, num_actors: int | None, pool: Pool
) -> None:
    assert Pool.of(hosts, device, num_actors) == pool
