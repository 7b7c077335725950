"""The runner of a model in this process, behind the interface of the calls to one over HTTP."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from runners.artifacts.manifest import ArtifactError, Manifest, files_of_runner, verify_files
from runners.artifacts.store import artifact_folder, read_adapters
from runners.options import RunnerOptions, encoder_batch_size
from runners.transport.messages import EncodedImage, ImageToEncode, Outcomes
from runners.worker import ModelWorker
from service.inference.served_models import chosen_precisions
from service.runner_client.client import FeaturesMissing, RunnerCall, RunnerChannel
from service.settings import Settings

_NO_URL = ""
_NO_TIMEOUT = 0.0


class InProcessRunner(RunnerChannel):
    """Encoder, decoder and scheduler of one model; of the channel's calls, `write` is the one that
    is made offline.
    """

    def __init__(self, manifest: Manifest, options: RunnerOptions) -> None:
        super().__init__(_NO_URL, manifest.build_key, _NO_TIMEOUT)
        self._manifest = manifest
        self._adapters = options.adapters
        self._worker = ModelWorker(manifest.model_id, options, self._encoded)
        self._batcher = EncoderBatcher(self._worker.encode, encoder_batch_size(options))

    def load(self, settings: Settings) -> None:
        """Verify and load the artifacts and warm up; raise `ArtifactError`."""
        precision, _ = chosen_precisions(self._manifest, settings)
        folder = artifact_folder(self._manifest.model_id)
        verify_files(folder, self._manifest, files_of_runner(self._manifest, precision))
        for adapter_folder, adapter in read_adapters(self._adapters, self._manifest):
            verify_files(adapter_folder, adapter)
        self._worker.load()
        if self._worker.build_key != self._manifest.build_key:
            message = (
                f"the artifacts of {self._manifest.model_id} have been exported again while they"
                " were loaded"
            )
            raise ArtifactError(
                f"{message}: {self._manifest.build_key}, now {self._worker.build_key}"
            )

    async def write(self, call: RunnerCall) -> Outcomes:
        """Return the outcome of each sequence.

        Raise `FeaturesMissing` for a new image without pixels.
        """
        features = await self._worker.features(
            call.image_key, call.pixels, call.sequences[0].adapter
        )
        if features is None:
            raise FeaturesMissing
        return await self._worker.write(features, call.sequences)

    async def _encoded(self, image_key: str) -> EncodedImage:
        return await self._batcher.encoded(image_key)


class EncoderBatcher:
    """Encodes images in one thread; those that wait while a batch runs are the next batch."""

    def __init__(
        self, encode: Callable[[Sequence[ImageToEncode]], list[EncodedImage]], max_batch_size: int
    ) -> None:
        self._encode_batch = encode
        self._max_batch_size = max_batch_size
        self._waiting: list[tuple[str, asyncio.Future[EncodedImage]]] = []
        self._encoder_thread = ThreadPoolExecutor(1, "encoder")
        self._encoding: asyncio.Task[None] | None = None

    async def encoded(self, image_key: str) -> EncodedImage:
        """Return the outcome of an image; raise the error of its batch."""
        encoded: asyncio.Future[EncodedImage] = asyncio.get_running_loop().create_future()
        self._waiting.append((image_key, encoded))
        if self._encoding is None:
            self._encoding = asyncio.create_task(self._encode_waiting())
        return await encoded

    async def _encode_waiting(self) -> None:
        while self._waiting:
            batch = self._waiting[: self._max_batch_size]
            del self._waiting[: len(batch)]
            await self._encode([key for key, _ in batch], [encoded for _, encoded in batch])
        self._encoding = None

    async def _encode(
        self, keys: Sequence[str], batch: Sequence["asyncio.Future[EncodedImage]"]
    ) -> None:
        images = [ImageToEncode(image_key=key) for key in keys]
        loop = asyncio.get_running_loop()
        try:
            outcomes = await loop.run_in_executor(self._encoder_thread, self._encode_batch, images)
        except Exception as error:  # the images wait for it
            for encoded in batch:
                encoded.set_exception(error)
            return
        for encoded, outcome in zip(batch, outcomes, strict=True):
            encoded.set_result(outcome)
