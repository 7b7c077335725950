"""The channel to a model of this process (runners/model_worker.py): no HTTP, no BentoML service.

The offline run answers through it.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from runners.model_worker import ModelWorker
from runners.options import RunnerOptions, encoder_batch_size
from runners.watchdog import bounded_start, end_process_when_stuck
from wire.artifacts.devices import encoder_device
from wire.artifacts.manifest import (
    ArtifactError,
    Manifest,
    choose_precision,
    files_of_runner,
    verify_files,
)
from wire.artifacts.model_store import artifact_folder, read_adapters
from wire.runner_messages import EncodedImage, ImageToEncode


def verify_artifacts(manifest: Manifest, options: RunnerOptions) -> None:
    """Hash the files that a channel loads; raise `ArtifactError`."""
    device = encoder_device(options.device)
    precision = choose_precision(manifest, "encoder", device, options.encoder_precision)
    folder = artifact_folder(manifest.model_id)
    verify_files(folder, manifest, files_of_runner(manifest, precision))
    for adapter_folder, adapter in read_adapters(options.adapters, manifest):
        verify_files(adapter_folder, adapter)


def load_channel(manifest: Manifest, options: RunnerOptions) -> ModelWorker:
    """Load a model into this process, which ends when its start or a step is stuck."""
    batcher = EncoderBatcher(lambda images: worker.encode(images), encoder_batch_size(options))
    worker = ModelWorker(manifest.model_id, options, batcher.encoded)
    with bounded_start(options.start_timeout_s):
        worker.load()
    if worker.build_key != manifest.build_key:
        raise ArtifactError(f"{manifest.model_id} was exported again while it was loaded")
    end_process_when_stuck(worker.watchdogs, options.limits.stuck_after_s)
    return worker


class EncoderBatcher:
    """Encodes images in order, in one thread; those that wait during a batch are the next."""

    def __init__(
        self, encode: Callable[[Sequence[ImageToEncode]], list[EncodedImage]], max_batch_size: int
    ) -> None:
        self._encode = encode
        self._max_batch_size = max_batch_size
        self._waiting: list[int] = []  # places
        self._outcomes: dict[int, EncodedImage | Exception] = {}
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "encoder")

    async def encoded(self, place: int) -> EncodedImage:
        """Return the outcome of the image in a place; raise the error of its batch."""
        self._waiting.append(place)
        async with self._turn:
            if place in self._waiting:
                await asyncio.sleep(0)  # images of calls that begin at the same time share a batch
                batch = self._waiting[: self._max_batch_size]
                del self._waiting[: len(batch)]
                images = [ImageToEncode(place=place) for place in batch]
                loop = asyncio.get_running_loop()
                try:
                    encoded = await loop.run_in_executor(self._thread, self._encode, images)
                    self._outcomes.update(zip(batch, encoded, strict=True))
                except Exception as error:  # the images wait for it
                    self._outcomes.update(dict.fromkeys(batch, error))
        outcome = self._outcomes.pop(place)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome
