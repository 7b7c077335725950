"""The BentoML service of one model: vision encoder, features cache and decoder in one process.

POST /write, /stream            the gateway's calls (runners/runner_api.py)
POST /encode                    one image, batched by BentoML's adaptive batcher; called within the
                                process
GET  /livez, /readyz, /metrics
"""

from typing import Any, cast

import bentoml

from runners.bentoml_internals import batcher, dispatch_at_once
from runners.options import RunnerOptions, encoder_batch_size, runner_name
from runners.runner_api import CallGuard, RunnerApi
from runners.watchdog import bounded_start, end_process_when_stuck
from wire.artifacts.devices import select_gpu
from wire.drain import CallsInFlight, drain_before_stop
from wire.runner_messages import EncodedImage, ImageToEncode
from wire.telemetry import tracing
from wire.telemetry.runner_metrics import START_TIME_SECONDS

NO_ACCESS_LOG = {"access": {"enabled": False}}  # the gateway logs each request once
# BentoML's tracing and metrics cost time in every call and duplicate our own.
NO_TRACING = {"excluded_urls": "."}


def make_runner_service(model_id: str, options: RunnerOptions) -> Any:
    dispatch_at_once()
    calls = CallsInFlight()
    api = RunnerApi()

    class Runner:
        """Turns images into features and features into answers."""

        @bentoml.on_startup
        async def load(self) -> None:
            """Verify and load the artifacts and warm up; the service is ready after this."""
            START_TIME_SECONDS.labels(model_id, "runner").set_to_current_time()
            tracing.start(options.traces, runner_name(model_id))
            with bounded_start(options.start_timeout_s):
                if options.gpu is not None:
                    select_gpu(options.gpu)
                # A late import: the gateway imports this module, and must load neither torch nor
                # ONNX Runtime.
                from runners.model_worker import ModelWorker

                self._worker = ModelWorker(model_id, options, self._batched)
                self._worker.load()
            end_process_when_stuck(self._worker.watchdogs, options.limits.stuck_after_s)
            api.start(self._worker)
            drain_before_stop(calls.drain)

        @bentoml.on_shutdown
        def stop(self) -> None:
            self._worker.stop()
            tracing.stop()

        async def __is_ready__(self) -> bool:
            return await self._worker.is_ready() and not calls.is_draining

        @bentoml.api(
            batchable=True,
            max_batch_size=encoder_batch_size(options),
            max_latency_ms=options.max_latency_ms,
        )
        def encode(self, images: list[ImageToEncode]) -> list[EncodedImage]:
            """Encode the images of pending calls; each succeeds or fails on its own."""
            return self._worker.encode(images)

        async def _batched(self, image_key: str) -> EncodedImage:
            (encoded,) = await batcher(self, "encode")([ImageToEncode(image_key=image_key)])
            return cast(EncodedImage, encoded)

    service = bentoml.service(
        name=runner_name(model_id),
        traffic={"timeout": options.timeout_s},
        logging=NO_ACCESS_LOG,
        metrics={"enabled": False},  # RunnerApi has its own /metrics
        tracing=NO_TRACING,
    )(Runner)
    service.add_asgi_middleware(CallGuard, api=api)
    service.mount_asgi_app(calls.middleware(api.app()))
    return service
