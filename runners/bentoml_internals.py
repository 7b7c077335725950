"""All uses of private names of BentoML, for version 1.4.40, with the reason for each.

`dispatch_at_once`, `batcher` and `local_runner_url` are also used under `bentoml serve`; the others
only by the supervisor (service/supervision/supervisor.py).
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

_RUNNER_MAP = "BENTOML_RUNNER_MAP"  # set by `bentoml serve` for its workers


def dispatch_at_once() -> None:
    """Make the adaptive batcher dispatch queued requests as soon as the previous batch is done.

    By default it delays a request by about the mean wait of the last 50 batches, `wait`: after a
    burst, a single request waits for nothing (measured at 36bfd84). So does its training, during
    the first 12 batches.
    """
    from bentoml._internal.marshal.dispatcher import CorkDispatcher, Optimizer

    async def no_training(*_arguments: object) -> None:
        pass

    Optimizer.wait = property(lambda _: 0.0, lambda _, _wait: None)  # type: ignore[assignment]
    CorkDispatcher.train_optimizer = no_training  # type: ignore[assignment, method-assign]


def batcher(instance: Any, api: str) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """Return a function that calls a batchable API through its adaptive batcher.

    The documented `instance.to_async` takes 2 ms of Python per image, while the decoder waits for
    the GIL.
    """
    (route,) = (route for route in instance.to_async.app.routes if route.name == api)
    factory = route.endpoint.func.__self__  # a ServiceAppFactory

    async def call(items: list[Any]) -> list[Any]:
        outcomes: list[Any] = await factory.batch_infer(api, (items,), {})
        return outcomes

    return call


def local_runner_url(name: str) -> str:
    """Return `file://PATH` of a socket or `tcp://HOST:PORT` of the local runner `name`.

    BentoML's own client sends pickles, and closes its session with all requests in flight.
    """
    urls: dict[str, str] = json.loads(os.environ[_RUNNER_MAP])
    return urls[name]


def worker_environment(urls: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables with the services' URLs by name, as `bentoml serve` does."""
    return {_RUNNER_MAP: json.dumps(dict(urls))}


def run_worker(
    service: str,
    name: str,
    fd: int,
    options: Sequence[str],
    protocol: type[asyncio.Protocol] | None = None,
) -> None:
    """Serve `name` of `service` (MODULE:ATTRIBUTE) until exit; `protocol` replaces uvicorn's."""
    import uvicorn.config
    from _bentoml_impl.worker.service import main  # reconfigures logging at import

    if protocol is not None:
        # uvicorn accepts classes too
        uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]
    main([service, "--service-name", name, "--fd", str(fd), "--worker-id", "1", *options])


def keep_loggers(formatter: object, line_filter: object) -> None:
    """Keep loggers when BentoML configures a worker's; filter and format its lines."""
    from bentoml._internal.log import SERVER_LOGGING_CONFIG

    SERVER_LOGGING_CONFIG["disable_existing_loggers"] = False
    # without a handler uvicorn composes no access log; each of its lines was dropped
    logging.getLogger("uvicorn.access").propagate = False
    SERVER_LOGGING_CONFIG["filters"]["repeated"] = {"()": line_filter}
    SERVER_LOGGING_CONFIG["handlers"]["tracehandler"]["filters"].append("repeated")
    traced = SERVER_LOGGING_CONFIG["formatters"]["traced"]
    form = {"fmt": traced["format"], "datefmt": traced["datefmt"]}
    SERVER_LOGGING_CONFIG["formatters"]["traced"] = {"()": formatter, **form}
