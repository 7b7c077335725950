"""The BentoML service of one model's decoder: sequences of many requests in one batch, coming and going."""

from dataclasses import dataclass
from typing import Any

import bentoml

from runners.encoder_service import NO_ACCESS_LOG
from runners.limits import SchedulerLimits
from runners.messages import Array, Outcome, SequenceSpec

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How a decoder service batches."""

    limits: SchedulerLimits
    num_threads: int  # of torch
    device: str  # "auto", "cpu" or "cuda"
    timeout_s: int


def make_decoder_service(model_id: str, options: DecoderOptions) -> Any:
    """Return the decoder service of one model."""

    class Decoder:
        """Writes answers from image features and prompts."""

        @bentoml.on_startup
        def load(self) -> None:
            """Check and load the artifacts, and write one sequence for real: only then is the service ready."""
            # torch is loaded here, in the decoder's process, and in no other that imports this module.
            from runners.decoder_worker import DecoderWorker

            self._worker = DecoderWorker(model_id, options)
            self._worker.load()
            self._worker.warm_up(WARM_UP_TOKENS)

        @bentoml.on_shutdown
        def stop(self) -> None:
            """Write what was accepted, then end."""
            self._worker.stop()

        @bentoml.api
        async def write(self, image_features: Array, sequences: list[SequenceSpec]) -> list[Outcome]:
            """Return what became of each sequence over one image's features, float32 (N, C)."""
            return await self._worker.write(image_features, sequences)

    service = bentoml.service(name=f"{model_id}-decoder", logging=NO_ACCESS_LOG, traffic={"timeout": options.timeout_s})
    return service(Decoder)
