"""The runner in the process of an actor: batches of the encoder, and the builds that it refuses."""

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runners.in_process_channel import EncoderBatcher
from tests.support.export_cli import ModelStore
from tests.support.offline_runs import write_scenes
from wire.runner_messages import EncodedImage, ImageToEncode

MODEL = "florence-2-mini"
# A runner watches, and may end, the process that holds it: these run in one of their own.
OTHER_BUILDS = """
import os
from dataclasses import replace
from offline.answering import load_model
from runners.in_process_channel import InProcessChannel
from offline.job import Build, Job
from wire.artifacts.manifest import ArtifactError
from service.inference.served_models import load_served_models, served_entries
from service.process_options import runner_options
from service.environment import read_settings

settings = read_settings({"DIPTYCH_MODELS": "florence-2-mini"})
model = load_served_models(settings)["florence-2-mini"]
build = Build.of(model, "object_detection", settings)
assert build.calibration != Build.of(model, "captioning", settings).calibration

def refused(load):
    try:
        load()
    except ArtifactError as error:
        print(error, flush=True)

for name in ("build_key", "precision", "calibration"):
    job = Job(replace(build, **{name: "theirs"}), {"task": "object_detection"}, "jsonl", 1, 1, "")
    refused(lambda: load_model(job, settings))
options = runner_options(model.id, settings, served_entries(settings))
theirs = replace(model.manifest, build_key="theirs")
refused(lambda: InProcessChannel(theirs, options).load())
os._exit(0)
"""


@dataclass(slots=True)
class BlockedEncoder:
    """Encodes a batch when it is released, or fails."""

    failure: Exception | None = None
    released: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def encode(self, images: Sequence[ImageToEncode]) -> list[EncodedImage]:
        self.batches.append([image.image_key for image in images])
        self.threads.add(threading.current_thread().name)
        self.released.wait(10)
        if self.failure is not None and len(self.batches) == 1:
            raise self.failure
        return [EncodedImage(encode_s=int(image.image_key)) for image in images]


async def encoded(encoder: BlockedEncoder, num_images: int) -> list[EncodedImage | BaseException]:
    """Encode images that all wait while the first batch runs."""
    batcher = EncoderBatcher(encoder.encode, 3)
    outcomes = [asyncio.create_task(batcher.encoded(str(index))) for index in range(num_images)]
    await asyncio.sleep(0)
    encoder.released.set()
    return await asyncio.gather(*outcomes, return_exceptions=True)


def test_images_are_encoded_in_batches_in_one_thread_and_have_their_own_outcome() -> None:
    encoder = BlockedEncoder()
    outcomes = asyncio.run(encoded(encoder, 8))
    assert encoder.batches == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]
    assert len(encoder.threads) == 1
    assert outcomes == [EncodedImage(encode_s=index) for index in range(8)]


def test_a_batch_that_fails_is_the_error_of_its_images_and_the_next_is_encoded() -> None:
    error = RuntimeError("the encoder failed")
    assert asyncio.run(encoded(BlockedEncoder(error), 5)) == [error] * 3 + [
        EncodedImage(encode_s=i) for i in (3, 4)
    ]


def test_an_image_that_comes_after_a_pause_is_encoded_too() -> None:
    encoder = BlockedEncoder()
    encoder.released.set()

    async def main() -> None:
        batcher = EncoderBatcher(encoder.encode, 3)
        for index in range(2):
            assert await batcher.encoded(str(index)) == EncodedImage(encode_s=index)

    asyncio.run(main())
    assert encoder.batches == [["0"], ["1"]]


def test_another_build_than_the_jobs_is_refused_with_both(exported: ModelStore) -> None:
    run = exported.python("-c", OTHER_BUILDS)
    assert run.returncode == 0, run.stderr
    key, precision, calibration, reloaded = run.stdout.splitlines()
    ours = json.loads((exported.newest(MODEL) / "manifest.json").read_text())["build_key"]
    assert f'another build than the job (build_key: "theirs", now "{ours}")' in key
    assert re.search(r'\(precision: "theirs", now "(encoder \w+, decoder )?\w+"\)', precision)
    assert re.search(r'\(calibration: "theirs", now "[0-9a-f]{64}"\)', calibration)
    assert reloaded.endswith(f"exported again while they were loaded: theirs, now {ours}")


def test_an_image_that_was_answered_before_is_encoded_again(
    exported: ModelStore, tmp_path: Path
) -> None:
    (scene,) = write_scenes(tmp_path / "scenes", 1).iterdir()
    # More than there are places: the last calls come after the first features are gone.
    run = exported.python(
        "-m", "tests.support.offline_answers", MODEL, "captioning", *[str(scene)] * 100
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(rows) == 100
    assert [row["error"] for row in rows] == [None] * 100
    assert len({row["raw_text"] for row in rows}) == 1
