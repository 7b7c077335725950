"""The run on Ray Data: shards go to actors, each with a model on a device.

An actor that dies is started again by Ray, and its shards are answered again: a shard is written at
once, so that none of its images is in the output twice. An image that kills its actor is left out
(offline/output.py). Without an address, Ray runs on this host, listens on 127.0.0.1 only, and
ends with this process.
"""

import asyncio
import logging
import os
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from offline.answering import Answerer, load_answerer
from offline.output import Attempt, Job, Output
from offline.shards import Shard
from service.settings import Settings
from wire.host import num_cores

# only the names of images and the numbers of done ones pass through it
_OBJECT_STORE_BYTES = 200_000_000
# The end of a shard, when few of its images are left, overlaps with the beginning of the next.
_SHARDS_AT_ONCE = 2
_SHARDS_ASSIGNED = 4


class ShardActor:
    """Processes and writes shards, several at a time; Ray Data calls it in threads."""

    def __init__(self, job: Job, settings: Settings, output_uri: str) -> None:
        self._output = Output(output_uri, job)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="answers", daemon=True).start()

        async def load() -> Answerer:
            return load_answerer(job, settings)

        self._answerer = asyncio.run_coroutine_threadsafe(load(), self._loop).result()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, int]:
        """Return the number of failed images of a shard."""
        index: int = row["index"]
        shard: Shard = pickle.loads(row["shard"])
        attempt = Attempt.begin(self._output, index)
        if attempt.number == 1:
            answered = self._answerer.rows(shard)
        else:
            answered = self._answerer.rows_one_by_one(shard, attempt)
        rows = asyncio.run_coroutine_threadsafe(answered, self._loop).result()
        self._output.write_shard(index, rows)
        attempt.end()
        return {"num_failed": sum(row.error is not None for row in rows)}


def start_ray(address: str | None) -> None:
    """Connect to a cluster, or start Ray on this host."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    local: dict[str, Any] = {
        "num_cpus": num_cores(),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    options = local if address is None else {}
    ray.init(address or "local", logging_level=logging.WARNING, **options)


@dataclass(frozen=True, slots=True)
class Pool:
    """The number of actors, and what each reserves."""

    size: int
    num_cpus: float
    num_gpus: float

    @classmethod
    def of(cls, hosts: Sequence[Mapping[str, float]], device: str, num_actors: int | None) -> Self:
        """Return an actor for each GPU, or one for each host; `hosts` have Ray's resources."""
        cores = [host["CPU"] for host in hosts if host.get("CPU", 0) >= 1]
        num_gpus = int(sum(host.get("GPU", 0) for host in hosts))
        if num_gpus and device != "cpu":
            size = num_actors or num_gpus
            return cls(size, 1, num_gpus / size)
        size = num_actors or len(cores)
        return cls(size, min(cores) * len(cores) / max(size, len(cores)), 0)


def answer_shards(
    output: Output, shards: Sequence[tuple[int, Shard]], settings: Settings, num_actors: int | None
) -> Iterator[int]:
    """Process and write the numbered shards; yield the number of failed images of each."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    hosts = [node["Resources"] for node in nodes if node["Alive"]]
    pool = Pool.of(hosts, settings.device, num_actors)
    items = [{"index": index, "shard": pickle.dumps(shard)} for index, shard in shards]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map(
        # a class of callables, as the documentation of `map` has it
        ShardActor,  # type: ignore[arg-type]
        fn_constructor_args=(output.job, settings, output.uri),
        compute=ActorPoolStrategy(
            size=min(pool.size, len(items)),
            max_tasks_in_flight_per_actor=_SHARDS_ASSIGNED,
            max_concurrent_calls_per_actor=_SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    for row in done.iter_rows():
        yield row["num_failed"]
