"""The BentoML service of one model's decoder: sequences of many requests in one batch, coming and going."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import bentoml
from starlette.requests import ClientDisconnect

from runners import tracing
from runners.builds import LoadedBuild
from runners.devices import DeviceSetting
from runners.disconnection import while_connected
from runners.limits import SchedulerLimits
from runners.messages import AnyArray, MemoryAddress, Outcomes, SequenceSpec
from runners.metrics import START_TIME_SECONDS
from runners.precision import WantedPrecision
from runners.runner_service import runner_service
from runners.shared_arrays import can_open
from runners.tracing import TraceOptions

WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """How a decoder service batches."""

    limits: SchedulerLimits
    max_positions: int  # of a sequence: image, prompt and answer; 0: as many as the model allows
    num_threads: int  # of torch; 0: as the model's width asks for
    device: DeviceSetting
    precision: WantedPrecision
    timeout_s: int
    traces: TraceOptions


def make_decoder_service(model_id: str, options: DecoderOptions) -> Any:
    """Return the decoder service of one model."""
    loaded = LoadedBuild()

    class Decoder:
        """Writes answers from image features and prompts."""

        @bentoml.on_startup
        def load(self) -> None:
            """Check and load the artifacts, and write one sequence for real: only then is the service ready."""
            START_TIME_SECONDS.labels(model_id, "decoder").set_to_current_time()
            tracing.start(options.traces, f"{model_id}-decoder")
            # torch is not loaded with this module, which the gateway imports too.
            from runners.decoder_worker import DecoderWorker

            self._worker = DecoderWorker(model_id, options)
            self._worker.load()
            self._worker.warm_up(WARM_UP_TOKENS)
            loaded.key = self._worker.build_key

        @bentoml.on_shutdown
        def stop(self) -> None:
            """Write what was accepted, then end."""
            self._worker.stop()
            tracing.stop()

        async def __is_ready__(self) -> bool:
            """Say whether steps come to an end."""
            return self._worker.is_content()

        @bentoml.api
        async def write(
            self, image_features: AnyArray, sequences: list[SequenceSpec], ctx: bentoml.Context
        ) -> Outcomes:
            """Return what became of each sequence over one image's features, float32 (N, C).

            A caller that closes its connection, or dies, frees their slots within one step.
            """
            try:
                writing = self._worker.write(image_features, sequences)
                return Outcomes(outcomes=await while_connected(ctx.request.receive, writing))
            except ClientDisconnect:
                return Outcomes(outcomes=[])  # nobody is left to read it

        @bentoml.api
        async def stream(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> AsyncGenerator[str, None]:
            """Yield a line of JSON for each piece of text, and one for the end of each sequence.

            A caller that closes its connection, or dies, frees their slots within one step.
            """
            yield "\n"  # BentoML 1.4.40 watches the connection only once something was sent
            async with aclosing(self._worker.stream(image_features, sequences)) as events:
                async for event in events:
                    yield event.model_dump_json() + "\n"

        @bentoml.api
        async def can_open(self, memory: MemoryAddress) -> bool:
            """Say whether arrays in this memory can be sent here."""
            return can_open(memory)

    return runner_service(f"{model_id}-decoder", Decoder, options.timeout_s, loaded)
