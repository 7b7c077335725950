"""Every private name of BentoML that Diptych uses, for version 1.4.40, and why.

`dispatch_at_once` and `local_runner_url` are needed under `bentoml serve` too, the rest by the supervisor alone
(service/supervision/supervisor.py).
"""

import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bentoml._internal.log import SERVER_LOGGING_CONFIG

_RUNNER_MAP = "BENTOML_RUNNER_MAP"  # what `bentoml serve` sets for its workers


def dispatch_at_once() -> None:
    """Let the adaptive batcher run what is queued as soon as the last batch is done.

    It would hold a request back for about the mean wait of the last 50 batches: after a burst a lone request waits
    for nobody (`python -m export.bench.batching`). `wait` is that mean. Its training, in the first 12 batches, waits
    for requests in the same way; the estimates that it makes are made again every 5 s.
    """
    from bentoml._internal.marshal.dispatcher import CorkDispatcher, Optimizer

    Optimizer.wait = property(_no_wait, _forget)  # type: ignore[assignment]
    CorkDispatcher.train_optimizer = _no_training  # type: ignore[assignment, method-assign]


def _no_wait(_optimizer: object) -> float:
    return 0.0


def _forget(_optimizer: object, _wait: float) -> None:
    pass


async def _no_training(*_arguments: object) -> None:
    pass


def batcher(instance: Any, api: str) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """Return a call of a batchable API of this process: through its adaptive batcher, without HTTP.

    The documented way, `instance.to_async`, takes each call through httpx, ASGI and JSON: 2 ms of Python per image,
    for which the decoder's thread waits.
    """
    (route,) = (route for route in instance.to_async.app.routes if route.name == api)
    factory = route.endpoint.func.__self__  # a ServiceAppFactory

    async def call(items: list[Any]) -> list[Any]:
        outcomes: list[Any] = await factory.batch_infer(api, (items,), {})
        return outcomes

    return call


def local_runner_url(name: str) -> str:
    """Return where the runner `name` of this host listens: `file://PATH` of a socket, or `tcp://HOST:PORT`.

    BentoML's own client (`bentoml.depends(...).to_async`) sends pickles, and closes its session with all requests in
    flight every 100 requests.
    """
    urls: dict[str, str] = json.loads(os.environ[_RUNNER_MAP])
    return urls[name]


def worker_environment(urls: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which `run_worker` finds the services by name, as `bentoml serve` makes it."""
    return {_RUNNER_MAP: json.dumps(dict(urls))}


def run_worker(service: str, name: str, fd: int, options: Sequence[str]) -> None:
    """Serve the service `name` of `service`, MODULE:ATTRIBUTE, on a listening socket, to the end of the process."""
    from _bentoml_impl.worker.service import main  # changes the logging of a process that imports it

    main([service, "--service-name", name, "--fd", str(fd), "--worker-id", "1", *options])


def keep_loggers(formatter: object | None) -> None:
    """Keep the loggers that exist when BentoML sets up a worker's, and format its own lines by `formatter`."""
    SERVER_LOGGING_CONFIG["disable_existing_loggers"] = False
    if formatter is not None:
        SERVER_LOGGING_CONFIG["formatters"]["traced"] = {"()": formatter}
