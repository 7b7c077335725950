"""The entry point for BentoML: the gateway service, with an encoder and a decoder service for each served model.

`python -m service` checks settings and artifacts, then runs its processes (service/supervisor.py).
"""

import asyncio
import logging
import signal
from typing import Any

import bentoml

from runners import tracing
from runners.artifacts import Part
from runners.decoder_service import make_decoder_service
from runners.encoder_service import make_encoder_service
from runners.metrics import START_TIME_SECONDS
from runners.model_store import artifact_folder
from runners.runner_service import NO_ACCESS_LOG, NO_TRACING
from service.api_keys import ApiKeys
from service.core import Core, CoreLimits
from service.grpc_server import GrpcServer
from service.host_addresses import SystemResolver
from service.http_guards import KeyForPaths, SecurityHeaders, closed_paths
from service.image_fetching import FetchLimits, ImageFetcher
from service.image_urls import AllowedHost
from service.logs import configure_logging
from service.metrics import MODEL_INFO
from service.model_runners import ModelRunners, decoder_options, encoder_options, runner_timeout_s, trace_options
from service.recording import NONE
from service.rest_app import rest_app
from service.rest_boundary import RestBoundary
from service.roles import GATEWAY
from service.runner_calls import DecoderCalls, EncoderCalls
from service.runner_client import RunnerClient
from service.served_models import ServedModel, ServedModels, load_served_model, served_entries
from service.settings import BYTES_PER_MB, Settings, settings
from service.shared_memory import SharedMemory
from service.traced_requests import TracedRequests
from service.vision_cache import VisionCache

logger = logging.getLogger(__name__)

_SETTINGS = settings()
_ENTRIES = served_entries(_SETTINGS)
_REST = RestBoundary(_SETTINGS)


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


def _attribute(part: Part, index: int) -> str:
    return f"{part}_{index}"


class _Gateway:
    """Answers requests: decodes images, calls the runners of each model, parses what they wrote."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load what the gateway needs of each model and begin to answer."""
        configure_logging(_SETTINGS.log_format)
        tracing.start(trace_options(_SETTINGS), "diptych")
        START_TIME_SECONDS.labels(NONE, "gateway").set_to_current_time()
        api_keys = ApiKeys.load(_SETTINGS.api_keys_file)
        models = {entry.id: load_served_model(entry, artifact_folder(entry.id), _SETTINGS) for entry in _ENTRIES}
        max_encoding = _SETTINGS.max_pending_requests * len(_ENTRIES)
        vision_cache = VisionCache(_SETTINGS.vision_cache_mb * BYTES_PER_MB, max_encoding)
        self._model_runners = ModelRunners(_SETTINGS, SharedMemory.create())
        self._runners = {
            model.id: RunnerClient(
                model.manifest,
                self._model_runners.runner(model.manifest, "encoder", EncoderCalls, self._local("encoder", index)),
                self._model_runners.runner(model.manifest, "decoder", DecoderCalls, self._local("decoder", index)),
                vision_cache,
            )
            for index, model in enumerate(models.values())
        }
        await self._model_runners.start()
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
        await self._model_runners.stop()
        await asyncio.to_thread(tracing.stop)

    def _local(self, part: Part, index: int) -> Any:
        """Return BentoML's client of a model's runner on this host, None where it runs elsewhere."""
        dependency = getattr(self, _attribute(part, index), None)
        return dependency and dependency.to_async

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
    """Return the gateway service; runners of this host are its dependencies."""
    dependencies = {}
    for index, entry in enumerate(_ENTRIES):
        if not _SETTINGS.runner_urls("encoder", entry.id):
            encoder = make_encoder_service(entry.id, encoder_options(_SETTINGS))
            dependencies[_attribute("encoder", index)] = bentoml.depends(encoder)
        if not _SETTINGS.runner_urls("decoder", entry.id):
            decoder = make_decoder_service(entry.id, decoder_options(_SETTINGS))
            dependencies[_attribute("decoder", index)] = bentoml.depends(decoder)
    inner = type("Gateway", (_Gateway,), {"__doc__": _Gateway.__doc__, "__module__": __name__, **dependencies})
    service = bentoml.service(
        name=GATEWAY, logging=NO_ACCESS_LOG, tracing=NO_TRACING, traffic={"timeout": runner_timeout_s(_SETTINGS)}
    )
    gateway = bentoml.asgi_app(rest_app(_REST), path="/")(service(inner))
    gateway.add_asgi_middleware(TracedRequests)
    gateway.add_asgi_middleware(SecurityHeaders)
    gateway.add_asgi_middleware(KeyForPaths, boundary=_REST, paths=closed_paths(_SETTINGS))
    return gateway


Gateway = _make_gateway()
