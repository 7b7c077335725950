"""The BentoML entry point: the gateway service, with a runner service for each model of this host.

`python -m service` checks settings and artifacts and runs the services under our supervisor
(service/supervision/supervisor.py); `bentoml serve service.gateway:Gateway` runs them too.
"""

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterable
from typing import Any

import bentoml

from runners.bentoml_internals import local_runner_url
from runners.options import runner_name
from runners.service import NO_ACCESS_LOG, NO_TRACING, make_runner_service
from service.admission.api_keys import ApiKeys
from service.admission.threads import POSTPROCESSING
from service.http.boundary import RestBoundary
from service.http.middleware import Middleware
from service.http_app import rest_app
from service.images.fetching import ImageFetcher
from service.images.handle_store import image_store
from service.inference.core import Core, CoreLimits
from service.inference.engine_calls import EngineClient
from service.inference.hot_adapters import HotAdapters
from service.inference.models import (
    EngineModel,
    ModelClients,
    RunnerModel,
    ServedModel,
    ServedModels,
)
from service.inference.recording import NONE
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import (
    load_served_models,
    local_models,
    runner_options,
    served_entries,
    unserved_models,
)
from service.outbound.process import OutboundProcess
from service.outbound.urls import AllowedHost
from service.rpc.server import GrpcServer
from service.settings import settings
from service.supervision.roles import GATEWAY
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import MODEL_INFO, measure_loop_lag
from wire.artifacts.adapter_folder import AdapterScan
from wire.drain import drain_before_stop
from wire.host import return_freed_memory_regularly
from wire.http_channel import HttpChannel
from wire.telemetry import tracing
from wire.telemetry.runner_metrics import START_TIME_SECONDS

logger = logging.getLogger(__name__)

_READY_EVERY_S = 0.2

# uvicorn 0.54 trusts 127.0.0.1 by default; DIPTYCH_TRUSTED_PROXIES replaces it for both ports
os.environ["FORWARDED_ALLOW_IPS"] = ""

_SETTINGS = settings()
_ENTRIES = served_entries(_SETTINGS)
_REST = RestBoundary(_SETTINGS)


class _Gateway:
    """Validates requests, calls the runners, and parses the generated text."""

    @bentoml.on_startup
    async def start(self) -> None:
        configure_logging(_SETTINGS.log_format)
        return_freed_memory_regularly()
        tracing.start(_SETTINGS.otlp_endpoint, "diptych")
        START_TIME_SECONDS.labels(NONE, "gateway").set_to_current_time()
        api_keys = ApiKeys.load(_SETTINGS.api_keys_file)
        models = load_served_models(_SETTINGS)
        limits = CoreLimits.from_settings(_SETTINGS)
        calls = OutboundProcess(limits.max_request_bytes)
        runners: dict[str, RunnerClient] = {}
        engines: dict[str, EngineClient] = {}
        for model in models.values():
            if isinstance(model, EngineModel):
                engines[model.id] = EngineClient(model.id, model.engine, calls)
            elif isinstance(model, RunnerModel) and not model.is_adapter:
                runners[model.id] = _runner_client(model)
        self._runners = runners
        served = ServedModels(models, unserved_models(_SETTINGS))
        handles = image_store(_SETTINGS)
        hosts = [AllowedHost.parse(host) for host in _SETTINGS.url_hosts]
        fetcher = ImageFetcher(hosts, _SETTINGS.max_body_bytes, calls)
        core = Core(served, ModelClients(runners, engines), limits, fetcher, handles)
        for model in models.values():
            _publish(model)
        background: list[Coroutine[Any, Any, None]] = [self._greet(models.values())]
        if engines or hosts or _SETTINGS.label_studio_url is not None:
            background.append(calls.keep_running())
        background += [engine.check() for engine in engines.values()]
        if handles is not None:
            background.append(handles.remove_regularly())
        self._adapters = None
        if _SETTINGS.adapters is not None:
            scan = AdapterScan(_SETTINGS.adapters)
            self._adapters = HotAdapters(scan, served, runners, _SETTINGS, _publish)
            background.append(self._adapters.watch())
        _REST.start(core, api_keys)
        self._places = core.places
        self._grpc = GrpcServer(core, api_keys, _SETTINGS, self.__is_ready__)
        if _SETTINGS.grpc_port:
            await self._grpc.start()
        background.append(measure_loop_lag())

        async def drain() -> None:
            await asyncio.gather(self._grpc.set_not_serving(), self._places.close())

        drain_before_stop(drain)
        self._background = list(map(asyncio.create_task, background))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        for task in self._background:
            task.cancel()
        if _SETTINGS.grpc_port:
            await self._grpc.stop(_SETTINGS.request_timeout_s)
        await asyncio.gather(*(runner.close() for runner in self._runners.values()))
        await POSTPROCESSING.run(tracing.stop)

    async def _greet(self, models: Iterable[ServedModel]) -> None:
        while not await self.__is_ready__():
            await asyncio.sleep(_READY_EVERY_S)
        names = ", ".join(f"{model.id} ({model.precision})" for model in models)
        url = _SETTINGS.url.replace("://0.0.0.0:", "://localhost:")
        logger.info("ready at %s/playground: %s", url, names)

    async def __is_ready__(self) -> bool:
        """Return True if the gateway accepts requests and runners and adapters are ready.

        BentoML 1.4.40's own probe of dependencies runs only after this returned True: it does not
        catch a refused connection, and its timeout middleware then delays the response until the
        request times out.
        """
        if self._places.is_closed or not (self._adapters is None or self._adapters.is_started):
            return False
        return all(await asyncio.gather(*(runner.is_ready() for runner in self._runners.values())))


def _runner_client(model: RunnerModel) -> RunnerClient:
    url = _SETTINGS.runner_url(model.id)
    local_url = url or local_runner_url(runner_name(model.id))
    channel = HttpChannel(local_url, model.version, _SETTINGS.call_timeout_s)
    return RunnerClient(model.id, channel, is_single=url is None)


def _publish(model: ServedModel, is_served: bool = True) -> None:
    MODEL_INFO.labels(
        model=model.id,
        family=model.entry.family,
        revision=model.revision,
        precision=model.precision,
        resolution=model.entry.resolution,
        build_key=model.version,
    ).set(int(is_served))


def _make_gateway() -> Any:
    members: dict[str, Any] = {"__doc__": _Gateway.__doc__, "__module__": __name__}
    for index, model_id in enumerate(local_models(_ENTRIES, _SETTINGS)):
        options = runner_options(model_id, _SETTINGS, _ENTRIES)
        members[f"runner_{index}"] = bentoml.depends(make_runner_service(model_id, options))
    inner = type("Gateway", (_Gateway,), members)
    service = bentoml.service(
        name=GATEWAY,
        workers=_SETTINGS.gateway_workers,  # read by `bentoml serve`
        logging=NO_ACCESS_LOG,
        # BentoML labels them by the paths that clients write; the app has its own /metrics
        metrics={"enabled": False},
        tracing=NO_TRACING,
        traffic={"timeout": _SETTINGS.call_timeout_s},
    )
    gateway = bentoml.asgi_app(rest_app(_REST), path="/")(service(inner))
    gateway.add_asgi_middleware(Middleware, boundary=_REST)
    return gateway


Gateway = _make_gateway()
