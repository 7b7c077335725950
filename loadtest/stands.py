"""One server under every workload of one model, and the file that keeps what came of it, so that a run can go on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from loadtest.client import Answer, Api, DiptychApi, PeerApi, Round, Sample, drive
from loadtest.material import ModelMaterial
from loadtest.plan import RoundPlan
from loadtest.servers import Server, ServerError, cpu_s, diptych_launch, peer_launch, running
from loadtest.workloads import NUM_CLIENTS, NUM_WARM_UP, BenchRequest, Scenes, WorkloadName, requests_of

_WARM_UP_LIMIT_S = 120.0
# Random weights write no well-formed answer: the bench asks for free ones, where the service can be asked for that.
_FREE_ANSWERS = {"constrained": "false"}


@dataclass(frozen=True, slots=True)
class Stand:
    """What one server did with one model."""

    model: str
    server: Server
    request_s: float  # of one request by one client after the warm-up
    start_s: float  # from the command to the first answer
    rounds: Mapping[WorkloadName, tuple[Round, ...]]
    batch_sizes: Mapping[str, float]  # of our service: mean by stage
    precision: str  # of our service, as it lists its models


class OpenStand:
    """A running server."""

    def __init__(self, model: ModelMaterial, server: Server, url: str, process_id: int) -> None:
        self._model = model
        self._server = server
        self._url = url
        self._process_id = process_id
        self._scenes = Scenes(model.scenes)
        self._api = _api(model, server, url)

    def warm_up(self) -> float:
        """Ask a few times, one after the other; return the seconds of the last, or raise `ServerError`."""
        requests = requests_of("single", self._scenes, NUM_WARM_UP)
        warm = drive(self._url, self._api, requests, 1, _WARM_UP_LIMIT_S)
        if warm.is_cut:
            raise ServerError(f"{self._server.name} did not answer {NUM_WARM_UP} requests in {_WARM_UP_LIMIT_S:.0f} s")
        return warm.samples[-1].latency_s

    def run(self, plan: RoundPlan) -> tuple[Round, ...]:
        """Drive the server with all rounds of one workload."""
        rounds = (requests_of(plan.workload, self._scenes, plan.num_requests) for _ in range(plan.num_rounds))
        return tuple(self._round(plan, requests) for requests in rounds)

    def batch_sizes(self) -> dict[str, float]:
        """Return our service's mean batch by stage; a peer does not tell."""
        if self._server.kind != "diptych":
            return {}
        return mean_batch_sizes(httpx.get(f"{self._url}/metrics", timeout=30).raise_for_status().text)

    def precision(self) -> str:
        """Return what our service runs the model in; the peers run everything in float32."""
        if self._server.kind != "diptych":
            return "float32"
        listed = httpx.get(f"{self._url}/v1/models", timeout=30).raise_for_status().json()["data"]
        return str(listed[0]["precision"])

    def _round(self, plan: RoundPlan, requests: Sequence[BenchRequest]) -> Round:
        if plan.workload == "decode_heavy":  # whoever has a cache has the image in it
            drive(self._url, self._api, requests[:1], 1, plan.limit_s)
        before_s = cpu_s(self._process_id)
        driven = drive(self._url, self._api, requests, NUM_CLIENTS[plan.workload], plan.limit_s)
        return replace(driven, cpu_s=cpu_s(self._process_id) - before_s)


@contextmanager
def opened(model: ModelMaterial, server: Server, folder: Path) -> Iterator[OpenStand]:
    """Start `server` with `model`, and stop it; its log lies in `folder`."""
    launch = (
        diptych_launch(server, model.id, folder) if server.kind == "diptych" else peer_launch(server, model.checkpoint)
    )
    with running(launch, folder / "logs" / f"{model.id}--{file_name(server)}.log") as process_id:
        yield OpenStand(model, server, launch.url, process_id)


def file_name(server: Server) -> str:
    """Return the name of a server as a part of a file's name."""
    return server.name.replace(" ", "-")


def _api(model: ModelMaterial, server: Server, url: str) -> Api:
    if server.kind != "diptych":
        return PeerApi()
    contract = httpx.get(f"{url}/openapi.json", timeout=30).raise_for_status().text
    is_free = model.is_endless and '"constrained"' in contract
    return DiptychApi(model.id, _FREE_ANSWERS if is_free else {})


def mean_batch_sizes(metrics: str) -> dict[str, float]:
    """Return the mean of `diptych_batch_size` by stage, from the text of /metrics."""
    totals: dict[str, dict[str, float]] = {"sum": {}, "count": {}}
    for line in metrics.splitlines():
        name, _, rest = line.partition("{")
        part = name.removeprefix("diptych_batch_size_")
        if part in totals and 'stage="' in rest:
            stage = rest.partition('stage="')[2].partition('"')[0]
            totals[part][stage] = totals[part].get(stage, 0.0) + float(rest.rpartition(" ")[2])
    return {stage: totals["sum"][stage] / count for stage, count in totals["count"].items() if count}


def write_stand(stand: Stand, file: Path) -> None:
    """Keep a stand; a file that is there is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(stand)), encoding="utf-8")
    part.replace(file)


def read_stand(file: Path) -> Stand:
    """Return a stand that was kept."""
    stand = json.loads(file.read_text(encoding="utf-8"))
    server = stand.pop("server")
    server = Server(**server | {"arguments": tuple(server["arguments"])})
    rounds = {workload: tuple(map(_round, listed)) for workload, listed in stand.pop("rounds").items()}
    return Stand(server=server, rounds=rounds, **stand)


def _round(listed: dict[str, Any]) -> Round:
    samples = (Sample(**sample | {"answer": Answer(**sample["answer"])}) for sample in listed["samples"])
    return Round(**listed | {"samples": tuple(samples)})
