"""The servers of the benchmark, how each is started, and its rounds.

A peer, over transformers' `generate`, runs under the workloads at which it was the best of a longer
bench (laboratory/results/bench.md of commit 8b8b2a34).
"""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from laboratory.bench.load import (
    DECODE_HEAVY,
    MIXED,
    ONE_IMAGE,
    RANDOM_MODEL,
    SINGLE,
    WORKLOADS,
    Api,
    Round,
    Workload,
    checkpoint_folder,
    drive,
    read_scenes,
    requests_of,
)
from loadtest.processes import NUM_CORES, Launch, cpu_s, free_port, running

_NUM_WARM_UP = 2
_WARM_UP_LIMIT_S = 120.0
_EMBEDDED_FACTOR = 4  # small models answer as many more requests


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """One server at one setting; a key by its identity."""

    name: str
    setting: str
    workloads: tuple[Workload, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # our service's settings
    peer: str | None = None  # its name in `peers`


_FLOAT32 = {"DIPTYCH_ENCODER_PRECISION": "float32", "DIPTYCH_DECODER_PRECISION": "float32"}
OURS = Server("diptych", "float32, else default settings", WORKLOADS, _FLOAT32)
OURS_DEFAULT = Server("diptych default", "default settings", WORKLOADS)
FASTAPI = Server("fastapi", f"lock, {NUM_CORES} threads", (SINGLE,), peer="fastapi")
LITSERVE = Server(
    "litserve workers",
    f"batch 4, 10 ms, {NUM_CORES} workers of one thread",
    (MIXED, ONE_IMAGE, DECODE_HEAVY),
    peer="litserve",
)


def servers_of(model: str) -> tuple[Server, ...]:
    """Return the servers that a model runs on; the embedded models' default is float32."""
    if model == RANDOM_MODEL:
        return (OURS, OURS_DEFAULT, FASTAPI, LITSERVE)
    return (OURS, FASTAPI, LITSERVE)


def launch_of(server: Server, model: str, folder: Path) -> Launch:
    """Return a server's start with one model; `folder` has the catalog and the store."""
    port = free_port()
    if server.peer is not None:
        command = [sys.executable, "-m", "laboratory.bench.peers", server.peer]
        command += [str(checkpoint_folder(folder, model)), "--port", str(port)]
        command += ["--cores", str(NUM_CORES)]
        return Launch(tuple(command), port, "/health")
    environment = {
        "DIPTYCH_MODELS": model,
        "DIPTYCH_CATALOG": str(folder / "catalog.yaml"),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_REQUEST_TIMEOUT_S": "900",  # slow machines exceed the default
        "BENTOML_HOME": str(folder / "bentoml"),
        **server.environment,
    }
    return Launch((sys.executable, "-m", "service"), port, "/readyz", environment)


def rounds_of(
    server: Server, model: str, folder: Path, run: int, deadline_s: float
) -> Iterator[tuple[Workload, Round]]:
    """Start a server and yield a round of each workload; its log is in `folder`.

    Random weights generate no well-formed answer: they run without constrained decoding.
    """
    is_random = model == RANDOM_MODEL
    api = Api() if server.peer else Api(model, is_constrained=not is_random)
    scenes = read_scenes(folder, model)
    factor = 1 if is_random else _EMBEDDED_FACTOR
    launch = launch_of(server, model, folder)
    with running(launch, folder / "logs" / f"{model}--{server.name}.log") as process_id:
        warm_up = [scene[0] for scene in scenes[-_NUM_WARM_UP:]]
        drive(launch.url, api, warm_up, 1, _WARM_UP_LIMIT_S)
        for workload in server.workloads:
            if workload == DECODE_HEAVY and not is_random:  # trained models end their answers
                continue
            requests = requests_of(workload, scenes, run, factor)
            if workload == DECODE_HEAVY:  # fills the features cache of a server that has one
                drive(launch.url, api, requests[:1], 1, _WARM_UP_LIMIT_S)
            before_s = cpu_s(process_id)
            limit_s = max(1.0, deadline_s - time.monotonic())
            driven = drive(launch.url, api, requests, workload.num_clients, limit_s)
            yield workload, replace(driven, cpu_s=cpu_s(process_id) - before_s)
