"""One server under every workload of one model."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import httpx

from laboratory.bench.material.records import ModelMaterial
from laboratory.bench.rounds.client import Api, DiptychApi, PeerApi, Round, drive
from laboratory.bench.rounds.servers import Server, launch_of
from laboratory.bench.rounds.workloads import (
    NUM_CLIENTS,
    NUM_WARM_UP,
    RoundPlan,
    Scenes,
    WorkloadName,
    requests_of,
)
from loadtest.processes import ServerError, cpu_s, running, suspended

_WARM_UP_LIMIT_S = 120.0
# Random weights generate no well-formed answer: endless checkpoints run without constrained
# decoding.
_UNCONSTRAINED = {"constrained": "false"}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Results of one server with one model."""

    model: str
    server: Server
    request_s: float  # one request by one client after the warm-up
    start_s: float  # from the command to the first answer
    rounds: Mapping[WorkloadName, tuple[Round, ...]]
    precision: str  # our service's, from /v1/models

    @property
    def all_rounds(self) -> list[Round]:
        return list(chain.from_iterable(self.rounds.values()))


class MeasuredServer:
    """A running server with one model."""

    def __init__(self, model: ModelMaterial, server: Server, url: str, process_id: int) -> None:
        self._server = server
        self._url = url
        self._process_id = process_id
        self._scenes = Scenes(model.scenes)
        self._api: Api = PeerApi()
        if server.kind == "diptych":
            self._api = DiptychApi(model.id, _UNCONSTRAINED if model.is_endless else {})

    def warm_up(self) -> float:
        """Send some requests, one after the other.

        Return the seconds of the last, or raise `ServerError`.
        """
        requests = requests_of("single", self._scenes, NUM_WARM_UP)
        warm = drive(self._url, self._api, requests, 1, _WARM_UP_LIMIT_S)
        if warm.is_cut:
            raise ServerError(
                f"{self._server.name} did not answer {NUM_WARM_UP} requests in"
                f" {_WARM_UP_LIMIT_S:.0f} s"
            )
        return warm.samples[-1].latency_s

    def run(self, plan: RoundPlan) -> tuple[Round, ...]:
        """Send all rounds of one workload."""
        rounds = []
        for _ in range(plan.num_rounds):
            requests = requests_of(plan.workload, self._scenes, plan.num_requests)
            if plan.workload == "decode_heavy":  # fills the features cache of a server that has one
                drive(self._url, self._api, requests[:1], 1, plan.limit_s)
            before_s = cpu_s(self._process_id)
            driven = drive(self._url, self._api, requests, NUM_CLIENTS[plan.workload], plan.limit_s)
            rounds.append(replace(driven, cpu_s=cpu_s(self._process_id) - before_s))
        return tuple(rounds)

    def suspended(self) -> AbstractContextManager[None]:
        """Return a context in which the server takes no processor time."""
        return suspended(self._process_id)

    def precision(self) -> str:
        """Return the precision of our service; peers run everything in float32."""
        if self._server.kind != "diptych":
            return "float32"
        listed = httpx.get(f"{self._url}/v1/models", timeout=30).raise_for_status().json()["data"]
        return str(listed[0]["precision"])


@contextmanager
def started(model: ModelMaterial, server: Server, folder: Path) -> Iterator[MeasuredServer]:
    """Start `server` with `model`, and stop it; its log is in `folder`."""
    launch = launch_of(server, model, folder)
    log = folder / "logs" / f"{model.id}--{server.name.replace(' ', '-')}.log"
    with running(launch, log) as process_id:
        yield MeasuredServer(model, server, launch.url, process_id)
