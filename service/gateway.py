"""The entry point for BentoML: the gateway service, with an encoder and a decoder service for each served model.

`python -m service` checks settings and artifacts, then runs its processes (service/supervisor.py).
"""

import asyncio
import logging
import signal
from typing import Any

import bentoml

from runners import tracing
from runners.decoder_service import DecoderOptions, make_decoder_service
from runners.encoder_service import NO_ACCESS_LOG, NO_TRACING, EncoderOptions, make_encoder_service
from runners.limits import SchedulerLimits
from runners.metrics import START_TIME_SECONDS
from runners.model_store import artifact_folder
from runners.tracing import TraceOptions
from service.api_keys import ApiKeys
from service.core import Core, CoreLimits
from service.grpc_server import GrpcServer
from service.host_addresses import SystemResolver
from service.http_guards import KeyForPaths, SecurityHeaders, closed_paths
from service.image_fetching import FetchLimits, ImageFetcher
from service.image_urls import AllowedHost
from service.logs import configure_logging
from service.metrics import MODEL_INFO
from service.recording import NONE
from service.rest_app import rest_app
from service.rest_boundary import RestBoundary
from service.runner_calls import DecoderCalls, EncoderCalls
from service.runner_client import RunnerClient
from service.served_models import ServedModel, ServedModels, load_served_model, served_entries
from service.settings import Settings, settings
from service.shared_memory import SharedMemory
from service.traced_requests import TracedRequests
from service.vision_cache import VisionCache

logger = logging.getLogger(__name__)

_SETTINGS = settings()
_ENTRIES = served_entries(_SETTINGS)
# BentoML drops what it expects to take longer than its limits: they lie above the request's own, which decides.
_RUNNER_TIMEOUT_S = _SETTINGS.request_timeout_s * 2
_BYTES_PER_MB = 1_000_000
_REST = RestBoundary(_SETTINGS)
_TRACES = TraceOptions(_SETTINGS.otlp_endpoint, _SETTINGS.trace_sample)


def _encoder_options(values: Settings) -> EncoderOptions:
    return EncoderOptions(
        values.encoder_max_batch_size,
        values.encoder_threads,
        values.device,
        values.encoder_precision,
        _RUNNER_TIMEOUT_S,
        values.stuck_after_s,
        _TRACES,
    )


def _decoder_options(values: Settings) -> DecoderOptions:
    return DecoderOptions(
        SchedulerLimits(
            values.decoder_max_batch_size,
            values.decoder_max_waiting,
            values.decoder_max_prefill_tokens,
            values.stuck_after_s,
        ),
        values.decoder_threads,
        values.device,
        values.decoder_precision,
        _RUNNER_TIMEOUT_S,
        _TRACES,
    )


def _core_limits(values: Settings) -> CoreLimits:
    return CoreLimits(
        values.max_image_pixels,
        values.max_pending_requests,
        values.decoder_max_batch_size * 3 // 2,  # what is encoded or parsed meanwhile keeps the slots full
        values.max_waiting_tokens,
    )


def _make_fetcher(values: Settings) -> ImageFetcher | None:
    if not values.url_hosts:
        return None
    limits = FetchLimits(values.max_body_bytes, values.url_timeout_s)
    return ImageFetcher([AllowedHost.parse(host) for host in values.url_hosts], limits, SystemResolver())


def _attribute(part: str, index: int) -> str:
    return f"{part}_{index}"


class _Gateway:
    """Answers requests: decodes images, calls the runners of each model, parses what they wrote."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load what the gateway needs of each model and begin to answer."""
        configure_logging(_SETTINGS.log_format)
        tracing.start(_TRACES, "diptych")
        START_TIME_SECONDS.labels(NONE, "gateway").set_to_current_time()
        api_keys = ApiKeys.load(_SETTINGS.api_keys_file)
        models = {entry.id: load_served_model(entry, artifact_folder(entry.id), _SETTINGS) for entry in _ENTRIES}
        max_encoding = _SETTINGS.max_pending_requests * len(_ENTRIES)
        vision_cache = VisionCache(_SETTINGS.vision_cache_mb * _BYTES_PER_MB, max_encoding)
        memory = SharedMemory.create()
        self._runners = {
            entry.id: RunnerClient(
                models[entry.id].manifest,
                EncoderCalls(getattr(self, _attribute("encoder", index)).to_async),
                DecoderCalls(getattr(self, _attribute("decoder", index)).to_async),
                vision_cache,
                memory,
            )
            for index, entry in enumerate(_ENTRIES)
        }
        core = Core(ServedModels(models), self._runners, _core_limits(_SETTINGS), _make_fetcher(_SETTINGS))
        for model in models.values():
            _publish(model)
        _REST.start(core, api_keys)
        self._entrance = core.entrance
        self._grpc = GrpcServer(core, api_keys, _SETTINGS, self.__is_ready__)
        if _SETTINGS.grpc_port:
            await self._grpc.start()
        self._drain_on(signal.SIGTERM)
        logger.info("serving %s", ", ".join(models))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Answer the gRPC calls that are at work, then end."""
        if _SETTINGS.grpc_port:
            await self._grpc.stop(_SETTINGS.request_timeout_s)
        await asyncio.to_thread(tracing.stop)

    def _drain_on(self, signum: signal.Signals) -> None:
        """Let uvicorn hear of the signal only when everything accepted is answered: it closes its socket at once."""
        stop_uvicorn = signal.getsignal(signum)
        assert callable(stop_uvicorn)

        async def drain() -> None:
            await asyncio.gather(self._grpc.tell_not_serving(), self._entrance.close())
            stop_uvicorn(signum, None)

        def begin() -> None:
            self._draining = asyncio.ensure_future(drain())

        asyncio.get_running_loop().add_signal_handler(signum, begin)

    async def __is_ready__(self) -> bool:
        """Say whether more is let in and every runner answers.

        BentoML 1.4.40's own probe lets a refused connection escape, and its timeout middleware then holds the probe's
        answer back until the request times out; it runs only where this says yes.
        """
        if self._entrance.is_closed:
            return False
        return all(await asyncio.gather(*(runner.is_ready() for runner in self._runners.values())))


def _publish(model: ServedModel) -> None:
    manifest = model.manifest
    MODEL_INFO.labels(
        model=model.id,
        family=model.entry.family,
        revision=manifest.revision or "",
        precision=model.precision,
        resolution=model.entry.resolution,
        build_key=manifest.build_key,
    ).set(1)


def _make_gateway() -> Any:
    """Return the gateway service, with the runners of every served model as its dependencies."""
    dependencies = {}
    for index, entry in enumerate(_ENTRIES):
        encoder = make_encoder_service(entry.id, _encoder_options(_SETTINGS))
        decoder = make_decoder_service(entry.id, _decoder_options(_SETTINGS))
        dependencies[_attribute("encoder", index)] = bentoml.depends(encoder)
        dependencies[_attribute("decoder", index)] = bentoml.depends(decoder)
    inner = type("Gateway", (_Gateway,), {"__doc__": _Gateway.__doc__, "__module__": __name__, **dependencies})
    service = bentoml.service(
        name="diptych", logging=NO_ACCESS_LOG, tracing=NO_TRACING, traffic={"timeout": _RUNNER_TIMEOUT_S}
    )
    gateway = bentoml.asgi_app(rest_app(_REST), path="/")(service(inner))
    gateway.add_asgi_middleware(TracedRequests)
    gateway.add_asgi_middleware(SecurityHeaders)
    gateway.add_asgi_middleware(KeyForPaths, boundary=_REST, paths=closed_paths(_SETTINGS))
    return gateway


Gateway = _make_gateway()
