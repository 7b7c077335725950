"""A part of a model that runs in several replicas, on this or other hosts.

ask     the replica that `service.replicas` chooses; where the call did not reach it, another, once
probe   /readyz of each, every second
find    names are resolved every few seconds: new addresses are probed, then used; gone ones end what they have
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic

import aiohttp

from runners.artifacts import Part
from service.errors import NotReady
from service.metrics import REPLICA_EJECTIONS, REPLICAS
from service.one_runner import BROKEN, RETRY_PAUSE_S, is_ready
from service.replicas import Health, Replica, Replicas
from service.runner_addresses import RunnerAddresses
from service.runner_apis import ApiT, ResultT, RunnerLink

logger = logging.getLogger(__name__)

_PROBE_EVERY_S = 1.0
_PROBE_TIMEOUT_S = 2
_FIND_EVERY_S = 3.0
# A proxy before a runner that is away, and a runner of another build (runners/builds.py).
_ELSEWHERE = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.CONFLICT)


@dataclass(frozen=True, slots=True)
class PartName:
    """A part of a model."""

    model_id: str
    part: Part

    def __str__(self) -> str:
        """Return it as in messages."""
        return f"{self.part} of {self.model_id}"


class ReplicatedRunner(Generic[ApiT]):
    """The replicas of one part. `link_to` makes the link to a URL."""

    def __init__(self, name: PartName, addresses: RunnerAddresses, link_to: Callable[[str], RunnerLink[ApiT]]) -> None:
        self._name = name
        self._addresses = addresses
        self._link_to = link_to
        self._replicas = Replicas[RunnerLink[ApiT]]()
        self._watching: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Find the replicas, ask each once how it is, and go on with both until `stop`."""
        await self.find()
        await self.probe()
        self._watching = [asyncio.create_task(_every(_PROBE_EVERY_S, self.probe))]
        if not self._addresses.are_fixed:
            self._watching.append(asyncio.create_task(_every(_FIND_EVERY_S, self.find)))

    async def stop(self) -> None:
        """End watching, and the connections."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*(replica.runner.api.close() for replica in self._replicas.members))

    @property
    def num_replicas(self) -> int:
        """How many are healthy, at least 1."""
        return max(1, self._replicas.num_healthy)

    async def is_ready(self) -> bool:
        """Say whether one is healthy, by the last probes."""
        return self._replicas.num_healthy > 0

    async def ask(
        self, call: Callable[[RunnerLink[ApiT]], Awaitable[ResultT]], cost: int, key: bytes | None = None
    ) -> ResultT:
        """Return what `call` returns of a replica. One that was not reached is out, and another is asked, once.

        That is safe, as an answer depends on nothing but its request.
        """
        first = self._chosen(cost, key)
        try:
            return await self._ask(first, call, cost)
        except (*BROKEN, aiohttp.ClientResponseError) as error:
            if not _is_unreached(error):
                raise
            logger.warning("the %s at %s was not reached: %r", self._name, first.address, error)
            second = self._chosen(cost, key, tried=(first,))
            if second is first:
                await asyncio.sleep(RETRY_PAUSE_S)
            return await self._ask(second, call, cost)

    def _chosen(
        self, cost: int, key: bytes | None, tried: Iterable[Replica[RunnerLink[ApiT]]] = ()
    ) -> Replica[RunnerLink[ApiT]]:
        chosen = self._replicas.choose(cost, key, tuple(tried))
        if chosen is None:
            raise NotReady(f"no {self._name} has an address now; try again in a few seconds")
        return chosen

    async def _ask(
        self,
        replica: Replica[RunnerLink[ApiT]],
        call: Callable[[RunnerLink[ApiT]], Awaitable[ResultT]],
        cost: int,
    ) -> ResultT:
        replica.outstanding += cost
        try:
            answer = await call(replica.runner)
            replica.health.note_answer()
            return answer
        except (*BROKEN, aiohttp.ClientResponseError) as error:
            if _is_unreached(error):
                self._note(replica, replica.health.note_failure)
            raise
        finally:
            replica.outstanding -= cost
            await self._close_if_gone(replica)

    async def find(self) -> None:
        """Take up the addresses that are new, let go of those that are gone."""
        wanted = await self._addresses.current()
        known = {replica.address: replica for replica in self._replicas.members}
        new = [Replica(address, self._link_to(address), Health()) for address in sorted(wanted - known.keys())]
        gone = [replica for address, replica in known.items() if address not in wanted]
        self._replicas.members = [*(known[address] for address in known if address in wanted), *new]
        for replica in gone:
            await self._close_if_gone(replica)
        if new or gone:
            logger.info("%s: %d replicas, %d new, %d gone", self._name, len(wanted), len(new), len(gone))
        self._count()

    async def _close_if_gone(self, replica: Replica[RunnerLink[ApiT]]) -> None:
        if replica not in self._replicas.members and replica.outstanding == 0:
            await replica.runner.api.close()

    async def probe(self) -> None:
        """Ask every replica whether it is ready."""
        await asyncio.gather(*map(self._probe_one, self._replicas.members))
        self._count()

    async def _probe_one(self, replica: Replica[RunnerLink[ApiT]]) -> None:
        is_up = await is_ready(replica.runner, _PROBE_TIMEOUT_S)
        self._note(replica, lambda: replica.health.note_probe(is_up))

    def _note(self, replica: Replica[RunnerLink[ApiT]], note: Callable[[], None]) -> None:
        """Note what a call or a probe has found, and tell where it changes who is healthy."""
        was_healthy = replica.health.is_healthy
        note()
        if replica.health.is_healthy == was_healthy:
            return
        if was_healthy:
            logger.warning("the %s at %s is out", self._name, replica.address)
            replica.runner.forget()
            REPLICA_EJECTIONS.labels(self._name.model_id, self._name.part).inc()
        else:
            logger.info("the %s at %s is healthy", self._name, replica.address)
        self._count()

    def _count(self) -> None:
        num_healthy = self._replicas.num_healthy
        for state, number in (("healthy", num_healthy), ("out", len(self._replicas.members) - num_healthy)):
            REPLICAS.labels(self._name.model_id, self._name.part, state).set(number)


def _is_unreached(error: Exception) -> bool:
    """Say whether a call did not reach its runner: its connection broke, or whoever answers says that it is another."""
    return not isinstance(error, aiohttp.ClientResponseError) or error.status in _ELSEWHERE


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:  # a defect must not end the watching of replicas for good
            logger.exception("watching replicas failed, and goes on")
