"""What the decoder's process runs: the loaded decoder, its scheduler, and the way from message to message."""

import asyncio
import os
from collections.abc import Sequence

import torch

from runners.answers import to_failed, to_request, to_written
from runners.artifacts import read_manifest, verify_files
from runners.decoder_service import DecoderOptions
from runners.decoders import load_decoder
from runners.devices import decoder_device, num_threads
from runners.messages import AnyArray, Failed, Outcome, SequenceSpec
from runners.model_store import artifact_folder
from runners.precision import choose_precision
from runners.scheduler import Scheduler
from runners.sequences import SequenceError
from runners.shared_arrays import MemoryUnreachable, view

_WARM_UP_TIMEOUT_S = 600.0


class DecoderWorker:
    """The decoder of one model and the thread that runs it."""

    def __init__(self, model_id: str, options: DecoderOptions) -> None:
        self._model_id = model_id
        self._options = options

    def load(self) -> None:
        """Check and load the artifacts and start the scheduler."""
        options = self._options
        folder = artifact_folder(self._model_id)
        self._manifest = read_manifest(folder)
        num_cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(num_threads(options.num_threads, self._manifest.hidden_size, num_cores))
        verify_files(folder, self._manifest)
        device = decoder_device(options.device)
        precision = choose_precision(self._manifest, "decoder", device, options.precision)
        self._decoder = load_decoder(folder, self._manifest.family, precision, device)
        self._scheduler = Scheduler(self._decoder, self._model_id, options.limits)
        self._scheduler.start()

    def warm_up(self, max_new_tokens: int) -> None:
        """Write one sequence from empty image features; raise what it raises."""
        features = torch.zeros(self._manifest.num_image_tokens, self._manifest.hidden_size)
        spec = SequenceSpec(segments=[("warm up", False)], max_new_tokens=max_new_tokens, timeout_s=_WARM_UP_TIMEOUT_S)
        (future,) = self._scheduler.submit([to_request(self._decoder, features, spec)])
        future.result(_WARM_UP_TIMEOUT_S)

    def stop(self) -> None:
        """Write what was accepted, then end."""
        self._scheduler.stop()

    async def write(self, image_features: AnyArray, specs: Sequence[SequenceSpec]) -> list[Outcome]:
        """Return what became of each sequence; one that fails does not touch the others.

        Cancelled, it cancels their futures.
        """
        try:
            features = torch.from_numpy(view(image_features))
            requests = [to_request(self._decoder, features, spec) for spec in specs]
            futures = self._scheduler.submit(requests)
        except SequenceError as error:
            return [to_failed(error) for _ in specs]
        except MemoryUnreachable as error:
            return [Failed(code="internal", message=f"the image features are not to be had: {error}") for _ in specs]
        results = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        return [
            to_written(self._decoder, request, result) if not isinstance(result, BaseException) else _failure(result)
            for request, result in zip(requests, results, strict=True)
        ]


def _failure(error: BaseException) -> Failed:
    """Return the message for what a sequence ended with; an exception of the model is named, not quoted."""
    if isinstance(error, SequenceError):
        return to_failed(error)
    if isinstance(error, Exception):
        return Failed(code="internal", message=f"the decoder failed: {type(error).__name__}")
    raise error
