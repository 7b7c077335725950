"""The servers of the benchmark and how each is started: our service, and every peer at several
settings.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from laboratory.bench.material.records import ModelMaterial
from loadtest.processes import NUM_CORES, Launch, free_port

Kind = Literal["diptych", "bentoml", "litserve", "litserve_onnx", "fastapi"]


@dataclass(frozen=True, slots=True)
class Server:
    """One server at one setting."""

    name: str
    kind: Kind
    description: str
    arguments: tuple[str, ...] = ()  # a peer's command line
    environment: Mapping[str, str] = field(default_factory=dict)  # our service's settings


_PEERS = "laboratory.bench.peers"
_FLOAT32 = {"DIPTYCH_ENCODER_PRECISION": "float32", "DIPTYCH_DECODER_PRECISION": "float32"}
OURS = Server("diptych", "diptych", "float32, else default settings", environment=_FLOAT32)
OURS_DEFAULT = Server("diptych default", "diptych", "default settings")


def servers_of(model: ModelMaterial) -> tuple[Server, ...]:
    """Return the servers that a model runs on; the first determines the plan, ours follow.

    At base scale and for long answers fewer settings of the peers are tried.
    """
    servers = [_fastapi("fastapi", NUM_CORES), OURS]
    if model.scale == "base":
        servers.append(OURS_DEFAULT)
    else:
        servers.append(_litserve("litserve 16", 16, 50, NUM_CORES))
    servers += [_litserve_workers(), best_embedded_peer(), _bentoml_workers()]
    if model.scale == "embedded" and not model.is_endless:  # others may be the best
        servers += [
            _litserve("litserve 8", 8, 5, NUM_CORES),
            _litserve("litserve onnx 8", 8, 5, NUM_CORES, kind="litserve_onnx"),
            _bentoml("bentoml 16", 16, NUM_CORES),
        ]
        if NUM_CORES > 1:
            servers += [_fastapi("fastapi 1", 1), _litserve("litserve 1", 16, 50, 1)]
    return tuple(servers)


def short_peer(is_litserve_installed: bool) -> Server:
    """Return the peer of the short run: the fastest of most workloads, if it is installed."""
    return _litserve_workers() if is_litserve_installed else _bentoml_workers()


def best_embedded_peer() -> Server:
    """Return the fastest peer of most workloads of the embedded models (laboratory/results)."""
    return _litserve("litserve onnx workers", 4, 10, 1, NUM_CORES, kind="litserve_onnx")


def _litserve_workers() -> Server:
    return _litserve("litserve workers", 4, 10, 1, num_workers=NUM_CORES)


def _bentoml_workers() -> Server:
    return _bentoml("bentoml workers", 16, 1, num_workers=NUM_CORES)


def _fastapi(name: str, num_threads: int) -> Server:
    return Server(
        name, "fastapi", f"lock, {_threads(num_threads)}", ("--threads", str(num_threads))
    )


def _litserve(
    name: str,
    max_batch_size: int,
    timeout_ms: int,
    num_threads: int,
    num_workers: int = 1,
    kind: Literal["litserve", "litserve_onnx"] = "litserve",
) -> Server:
    options = {
        "--threads": num_threads,
        "--workers": num_workers,
        "--max-batch-size": max_batch_size,
        "--batch-timeout-s": timeout_ms / 1000,
    }
    arguments = tuple(map(str, chain.from_iterable(options.items())))
    parallel = _parallel(num_threads, num_workers)
    return Server(name, kind, f"batch {max_batch_size}, {timeout_ms} ms, {parallel}", arguments)


def _bentoml(name: str, max_batch_size: int, num_threads: int, num_workers: int = 1) -> Server:
    arguments = ["--arg", f"threads={num_threads}", "--arg", f"workers={num_workers}"]
    arguments += ["--arg", f"max_batch_size={max_batch_size}"]
    description = f"batch {max_batch_size}, adaptive, {_parallel(num_threads, num_workers)}"
    return Server(name, "bentoml", description, tuple(arguments))


def _parallel(num_threads: int, num_workers: int) -> str:
    return _threads(num_threads) if num_workers == 1 else f"{num_workers} workers"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def launch_of(server: Server, model: ModelMaterial, folder: Path) -> Launch:
    """Return a server's start with one model; `folder` has our service's catalog and store.

    Ours runs with default settings but the timeout; settings in the environment of the bench reach
    it.
    """
    if server.kind != "diptych":
        return peer_launch(server, model.checkpoint, model.encoder_graph)
    port = free_port()
    environment = {
        "DIPTYCH_MODELS": model.id,
        "DIPTYCH_CATALOG": str(folder / "catalog.yaml"),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_REQUEST_TIMEOUT_S": "900",  # slow machines exceed the default
        "BENTOML_HOME": str(folder / "bentoml"),
        **server.environment,
    }
    return Launch((sys.executable, "-m", "service"), port, "/readyz", environment)


def peer_launch(server: Server, checkpoint: Path, encoder_graph: Path) -> Launch:
    """Return a peer's start with a checkpoint; `litserve_onnx` reads the encoder's graph."""
    port = free_port()
    if server.kind == "bentoml":
        # The service of the model would close connections that the wrapper is about to use (BentoML
        # issue 4971).
        command = [sys.executable, "-m", "bentoml", "serve", f"{_PEERS}.bentoml_server:Vision"]
        command += ["--port", str(port), "--timeout-keep-alive", "900"]
        command += ["--arg", f"checkpoint={checkpoint}", *server.arguments]
        return Launch(tuple(command), port, "/readyz")
    module = f"{_PEERS}.{server.kind.removesuffix('_onnx')}_server"
    command = [sys.executable, "-m", module, str(checkpoint), "--port", str(port)]
    if server.kind == "litserve_onnx":
        command += ["--encoder-graph", str(encoder_graph)]
    return Launch((*command, *server.arguments), port, "/health")
