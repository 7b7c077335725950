"""The workloads of the benchmark, the servers under them, and the client that sends the requests.

The client shares the server's cores, so it uses aiohttp, which takes a fraction of the processor
time of httpx. A peer, over transformers' `generate`, runs under the workloads at which it was the
best of a longer bench (laboratory/results/bench.md of commit 8b8b2a34).
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from laboratory.processes import Launch, free_port, running
from wire.artifacts.manifest import Device
from wire.host import num_cores

RANDOM_MODEL = "florence-2-base-random"
SHORT_TOKENS = 8
_LENGTHS = (SHORT_TOKENS, 32, SHORT_TOKENS, 64, SHORT_TOKENS, 128, SHORT_TOKENS, 256)
_SCENES_OF_A_RUN = 21
_TIMEOUT_S = 900  # longer than any answer
_NUM_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Workload:
    """A list of requests, and the measures that are compared."""

    title: str
    compared: tuple[str, ...]
    first_scene: int  # of those of a run
    num_requests: int = 0  # 0: one for each task
    num_clients: int = 16  # each with one request at a time


# each request with another task and another image
MIXED = Workload("(a) mixed", ("requests/s",), 3, 16)
# every task of the model about one image, sent concurrently; another image in every round
ONE_IMAGE = Workload("(b) one image", ("requests/s",), 19)
# answers of 8 to 256 tokens about an image that was sent before
DECODE_HEAVY = Workload("(c) decode-heavy", ("tokens/s", "p95 of short ones, ms"), 20, 8)
SINGLE = Workload("(d) single", ("p50, ms",), 0, 3, num_clients=1)
WORKLOADS = (SINGLE, MIXED, ONE_IMAGE, DECODE_HEAVY)


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """One server at one setting; a key by its identity."""

    name: str
    workloads: tuple[Workload, ...] = WORKLOADS
    environment: Mapping[str, str] = field(default_factory=dict)  # our service's settings
    peer: str | None = None  # its name in `peers`


_FLOAT32 = {"DIPTYCH_ENCODER_PRECISION": "float32", "DIPTYCH_DECODER_PRECISION": "float32"}
OURS = Server("diptych", environment=_FLOAT32)
OURS_DEFAULT = Server("diptych default")
FASTAPI = Server("fastapi", (SINGLE,), peer="fastapi")
LITSERVE = Server("litserve workers", (MIXED, ONE_IMAGE, DECODE_HEAVY), peer="litserve")
SERVERS = (OURS, OURS_DEFAULT, FASTAPI, LITSERVE)


@dataclass(frozen=True, slots=True)
class BenchQuestion:
    """One question about an image: fields of our API, and the exact prompt of the model."""

    image: str  # path of the file
    fields: dict[str, Any]
    prompt: str
    max_new_tokens: int


Scenes = list[list[BenchQuestion]]  # the questions about each image


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request."""

    max_new_tokens: int
    latency_s: float
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """Results of one list of requests."""

    elapsed_s: float
    samples: tuple[Sample, ...]  # same order as the requests


def read_scenes(folder: Path) -> Scenes:
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    scenes: Scenes = []
    for scene in rows:
        scenes.append([BenchQuestion(**row) for row in scene])
    return scenes


def requests_of(workload: Workload, scenes: Scenes, run: int) -> list[BenchQuestion]:
    """Return the round of a run, the same for every server; no two rounds share a scene."""
    first = run * _SCENES_OF_A_RUN + workload.first_scene
    if not workload.num_requests:
        return [questions[0] for questions in _by_task(scenes[first])]
    requests = []
    for index in range(workload.num_requests):
        is_heavy = workload == DECODE_HEAVY
        # another task for each index, and another question of it in each turn
        tasks = _by_task(scenes[first if is_heavy else first + index])
        of_task = tasks[index % len(tasks)]
        question = of_task[index // len(tasks) % len(of_task)]
        if is_heavy:
            question = replace(question, max_new_tokens=_LENGTHS[index % len(_LENGTHS)])
        requests.append(question)
    return requests


def _by_task(questions: Sequence[BenchQuestion]) -> list[list[BenchQuestion]]:
    by_task: dict[str, list[BenchQuestion]] = {}
    for question in questions:
        by_task.setdefault(question.fields["task"], []).append(question)
    return list(by_task.values())


def launch_of(server: Server, folder: Path, device: Device = "cpu") -> Launch:
    """Return a server's start on a device; `folder` has the catalog and the store."""
    port = free_port()
    if server.peer is not None:
        command = [sys.executable, "-m", "laboratory.bench.peers", server.peer]
        command += [str(folder / "checkpoint"), str(port), str(num_cores()), device]
        return Launch(tuple(command), port, "/health")
    environment = {
        "DIPTYCH_MODELS": RANDOM_MODEL,
        "DIPTYCH_CATALOG": str(folder / "catalog.yaml"),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_REQUEST_TIMEOUT_S": "900",  # slow machines exceed the default
        "BENTOML_HOME": str(folder / "bentoml"),
        "DIPTYCH_DEVICE": device,
        **server.environment,
    }
    return Launch((sys.executable, "-m", "service"), port, "/readyz", environment)


def rounds_of(
    server: Server, folder: Path, run: int, device: Device
) -> Iterator[tuple[Workload, Round]]:
    """Start a server and yield a round of each workload; its log is in `folder`."""
    scenes = read_scenes(folder)
    launch = launch_of(server, folder, device)
    is_ours = server.peer is None
    with running(launch, folder / "logs" / f"{server.name}.log"):
        warm_up = [scene[0] for scene in scenes[-_NUM_WARM_UP:]]
        drive(launch.url, is_ours, warm_up, 1)
        for workload in server.workloads:
            requests = requests_of(workload, scenes, run)
            if workload == DECODE_HEAVY:  # fills the features cache of a server that has one
                drive(launch.url, is_ours, requests[:1], 1)
            yield workload, drive(launch.url, is_ours, requests, workload.num_clients)


def form(question: BenchQuestion, is_ours: bool) -> dict[str, str]:
    """Return the fields besides the image; lists are JSON, and random weights unconstrained."""
    fields = {"max_new_tokens": str(question.max_new_tokens)}
    if not is_ours:
        return fields | {"prompt": question.prompt}
    fields["constrained"] = "false"
    for name, value in question.fields.items():
        fields[name] = json.dumps(value) if isinstance(value, list) else str(value)
    return fields


def drive(url: str, is_ours: bool, requests: Sequence[BenchQuestion], num_clients: int) -> Round:
    """Send `requests` in order and wait for all; raise `aiohttp.ClientResponseError`."""
    return asyncio.run(_drive(url, is_ours, requests, num_clients))


async def _drive(
    url: str, is_ours: bool, requests: Sequence[BenchQuestion], num_clients: int
) -> Round:
    images = {request.image: Path(request.image).read_bytes() for request in requests}
    samples: dict[int, Sample] = {}
    pending = iter(enumerate(requests))
    timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
    async with aiohttp.ClientSession(url, timeout=timeout, raise_for_status=True) as http:

        async def send() -> None:
            for index, request in pending:
                data = aiohttp.FormData(form(request, is_ours))
                data.add_field("image", images[request.image], filename="image.png")
                sent_s = time.perf_counter()
                path = "/v1/predict" if is_ours else "/predict"
                async with http.post(path, data=data) as response:
                    body = await response.json()
                latency_s = time.perf_counter() - sent_s
                text = body["raw_text"] if is_ours else body["text"]
                counts = body["usage"] if is_ours else body
                num_tokens = counts["generated_tokens"]
                samples[index] = Sample(request.max_new_tokens, latency_s, text, num_tokens)

        start_s = time.perf_counter()
        await asyncio.gather(*(send() for _ in range(num_clients)))
        elapsed_s = time.perf_counter() - start_s
    return Round(elapsed_s, tuple(sample for _, sample in sorted(samples.items())))
