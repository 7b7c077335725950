"""The channel to a model of the same process: batches of the encoder, and what is refused."""

import asyncio
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runners.in_process_channel import EncoderBatcher
from tests.support.export_cli import ModelStore
from wire.artifacts.manifest import DECODER_FILE
from wire.runner_messages import EncodedImage, ImageToEncode

MODEL = "florence-2-mini"


LOAD = f"""
from dataclasses import replace
from runners.in_process_channel import load_channel, verify_artifacts
from service.inference.served_models import runner_options
from service.settings import Settings
from wire.artifacts.manifest import read_manifest
from wire.artifacts.model_store import artifact_folder
manifest = read_manifest(artifact_folder("{MODEL}"))
options = runner_options("{MODEL}", Settings(device="cpu"), ())
"""
OTHER_BUILD = LOAD + "load_channel(replace(manifest, build_key='theirs'), options)"
VERIFIED = LOAD + "verify_artifacts(manifest, options)"


@dataclass(slots=True)
class BlockedEncoder:
    """Encodes a batch when it is released, or fails."""

    failure: Exception | None = None
    released: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def encode(self, images: Sequence[ImageToEncode]) -> list[EncodedImage]:
        self.batches.append([image.place for image in images])
        self.threads.add(threading.current_thread().name)
        self.released.wait(60)
        if self.failure is not None and len(self.batches) == 1:
            raise self.failure
        return [EncodedImage(encode_s=image.place) for image in images]


async def encoded(
    batcher: EncoderBatcher, encoder: BlockedEncoder, num_images: int
) -> list[EncodedImage | BaseException]:
    """Encode images that all wait while the first batch runs."""
    outcomes = [asyncio.create_task(batcher.encoded(index)) for index in range(num_images)]
    await asyncio.sleep(0)
    encoder.released.set()
    return await asyncio.gather(*outcomes, return_exceptions=True)


async def test_waiting_images_are_batched_in_one_thread() -> None:
    encoder = BlockedEncoder()
    batcher = EncoderBatcher(encoder.encode, 3)
    outcomes = await encoded(batcher, encoder, 8)
    outcomes.append(await batcher.encoded(8))  # after a pause
    assert encoder.batches == [[0, 1, 2], [3, 4, 5], [6, 7], [8]]
    assert len(encoder.threads) == 1
    assert outcomes == [EncodedImage(encode_s=index) for index in range(9)]


async def test_a_failed_batch_fails_its_images_only() -> None:
    error = RuntimeError("the encoder failed")
    encoder = BlockedEncoder(error)
    outcomes = await encoded(EncoderBatcher(encoder.encode, 3), encoder, 5)
    assert outcomes == [error] * 3 + [EncodedImage(encode_s=index) for index in (3, 4)]


def test_a_changed_file_is_refused(exported: ModelStore, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    file = store.newest(MODEL) / DECODER_FILE
    content = file.read_bytes()
    file.unlink()  # it may be a link
    file.write_bytes(content[:-1] + b"x")
    run = store.forked("-c", VERIFIED)
    assert run.returncode == 1
    assert f"ArtifactError: {file}" in run.stderr.splitlines()[-1]


def test_another_build_is_refused(exported: ModelStore) -> None:
    run = exported.forked("-c", OTHER_BUILD)
    assert run.returncode == 1
    assert run.stderr.endswith("exported again while it was loaded\n")
