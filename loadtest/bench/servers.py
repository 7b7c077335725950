"""The servers of the benchmark and how each is started: our service, and every peer at several settings."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loadtest.bench.material import ModelMaterial
from loadtest.processes import NUM_CORES, Launch, free_port

Kind = Literal["diptych", "litserve", "fastapi"]


@dataclass(frozen=True, slots=True)
class Server:
    """One server at one setting."""

    name: str
    kind: Kind
    description: str
    arguments: tuple[str, ...] = ()  # of a peer
    environment: Mapping[str, str] = field(default_factory=dict)  # of our service


_FLOAT32 = {"DIPTYCH_ENCODER_PRECISION": "float32", "DIPTYCH_DECODER_PRECISION": "float32"}
OURS = Server("diptych", "diptych", "float32, else default settings", environment=_FLOAT32)
OURS_DEFAULT = Server("diptych default", "diptych", "default settings")


def servers_of(model: ModelMaterial, is_quick: bool) -> tuple[Server, ...]:
    """Return the servers that a model runs on; the first determines the plan, ours follow.

    At base scale and for long answers fewer settings of the peers are tried.
    """
    first, *others = _peers()[:2] if is_quick else _peers()
    ours = (OURS, OURS_DEFAULT) if model.scale == "base" else (OURS,)
    is_widely_tried = model.scale == "embedded" and not is_quick and not model.is_endless
    return (first, *ours, *others, *(_small_model_peers() if is_widely_tried else ()))


def _peers() -> tuple[Server, ...]:
    several = () if NUM_CORES == 1 else (_litserve("litserve workers", 4, 10, 1, num_workers=NUM_CORES),)
    return (_fastapi("fastapi", NUM_CORES), _litserve("litserve 16", 16, 50, NUM_CORES), *several)


def _small_model_peers() -> tuple[Server, ...]:
    """Return further settings, which may be the best where a model is small."""
    several = () if NUM_CORES == 1 else (_fastapi("fastapi 1", 1), _litserve("litserve 1", 16, 50, 1))
    return (_litserve("litserve 8", 8, 5, NUM_CORES), *several)


def _fastapi(name: str, num_threads: int) -> Server:
    return Server(name, "fastapi", f"lock, {_threads(num_threads)}", ("--threads", str(num_threads)))


def _litserve(name: str, max_batch_size: int, timeout_ms: int, num_threads: int, num_workers: int = 1) -> Server:
    parallel = _threads(num_threads) if num_workers == 1 else f"{num_workers} workers"
    options = {
        "--threads": num_threads,
        "--workers": num_workers,
        "--max-batch-size": max_batch_size,
        "--batch-timeout-s": timeout_ms / 1000,
    }
    arguments = tuple(word for name, value in options.items() for word in (name, str(value)))
    return Server(name, "litserve", f"batch {max_batch_size}, {timeout_ms} ms, {parallel}", arguments)


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def launch_of(server: Server, model: ModelMaterial, folder: Path) -> Launch:
    """Return how a server is started with one model; `folder` has the catalog and the store of our service."""
    if server.kind == "diptych":
        return _diptych_launch(server, model.id, folder)
    return peer_launch(server, model.checkpoint)


def peer_launch(server: Server, checkpoint: Path) -> Launch:
    port = free_port()
    module = f"loadtest.bench.peers.{server.kind}_server"
    command = (sys.executable, "-m", module, str(checkpoint), "--port", str(port), *server.arguments)
    return Launch(command, port, "/health")


def _diptych_launch(server: Server, model_id: str, folder: Path) -> Launch:
    """Return how our service is started: default settings except the timeout, which a slow machine exceeds.

    Settings in the environment of the bench reach the service.
    """
    port = free_port()
    environment = {
        "DIPTYCH_MODELS": model_id,
        "DIPTYCH_CATALOG": str(folder / "catalog.yaml"),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_REQUEST_TIMEOUT_S": "900",
        "BENTOML_HOME": str(folder / "bentoml"),
        **server.environment,
    }
    return Launch((sys.executable, "-m", "service"), port, "/readyz", environment)
