"""The run on Ray Data: shards go to actors, each with a model on a device.

An actor that dies is started again by Ray, and its shards are answered again: a shard is written at
once, so that none of its images is in the output twice. An image that kills its actor is left out
(offline/output.py). Without an address, Ray runs on this host, listens on 127.0.0.1 only, and
ends with this process.

More images are in flight in an actor than its decoder has slots, over all of its shards: encoder
and decoder never wait for a shard to end. A shard whose worker died is answered image by image, and
nothing beside it.
"""

import asyncio
import logging
import math
import os
import pickle
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from offline.output import Attempt, Job, Output, Row, RowError, build_of, differences
from offline.shards import InputImage, Shard, images_of
from runners.in_process_channel import load_channel, verify_artifacts
from service.admission.places import RequestContext
from service.admission.threads import FairThreads
from service.analysis import analyze
from service.errors import ServiceError
from service.images.decoding import MAX_DECODED_IMAGES
from service.inference.core import Core, CoreLimits
from service.inference.models import ModelClients, RunnerModel, ServedModels
from service.inference.request_fields import GenerationFields, parse_fields
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import (
    load_served_models,
    max_slots,
    runner_options,
    served_entries,
)
from service.schema.rendering import RESULT, analysis_json
from service.settings import Settings
from wire.artifacts.manifest import ArtifactError, read_manifest
from wire.artifacts.model_store import artifact_folder
from wire.host import num_cores

logger = logging.getLogger(__name__)

# only the names of images and the numbers of done ones pass through it
_OBJECT_STORE_BYTES = 200_000_000
# The end of a shard, when few of its images are left, overlaps with the beginning of the next.
_SHARDS_AT_ONCE = 2
_SHARDS_ASSIGNED = 4
STEPS_TASK = "analyze"  # of rows that answer steps
_UNBOUNDED = 1_000_000  # sequences queued: the places bound the images
_UNLIMITED = 1 << 60  # tokens and bytes: the places of the run bound what is in progress
_IMAGES_PER_SLOT = 2
# Ids and times differ from run to run, the rest is in the row.
_RUN_FIELDS = {"id", "task", "image", "usage", "vision_cache", "timings_ms", "labels"}
_READING = FairThreads("reading", 8)  # of images, whose files may be remote
_MAX_DEATHS = 2  # workers that died at the same image


async def load_answerer(job: Job, settings: Settings) -> "Answerer":
    """Load the artifacts; raise `ArtifactError` if this host would not answer as the job's."""
    models = load_served_models(settings)
    model = models[job.build["model"]]
    if differing := differences(job.build, build_of(model, job.fields, settings)):
        message = "export the same checkpoint, with the same catalog and calibration, on every host"
        raise ArtifactError(f"this host has another build than the job ({differing}): {message}")
    if not isinstance(model, RunnerModel):
        raise ArtifactError(f"{model.id} has no weights here; run diptych annotate instead")
    base = read_manifest(artifact_folder(model.backend_id))
    options = runner_options(model.backend_id, settings, served_entries(settings))
    limits = replace(options.limits, max_waiting=_UNBOUNDED)
    # Every image is new: a cache would only take memory.
    options = replace(options, limits=limits, max_cache_bytes=0, adapters_folder=None)
    verify_artifacts(base, options)
    channel = load_channel(base, options)
    return Answerer(model, RunnerClient(base.model_id, channel), job.fields, settings)


class Answerer:
    """Processes shards; must be created and used in one event loop."""

    def __init__(
        self,
        model: RunnerModel,
        runner: RunnerClient,
        fields: Mapping[str, Any],
        settings: Settings,
    ) -> None:
        num_places = max_slots(settings) * _IMAGES_PER_SLOT
        limits = CoreLimits(
            max_image_pixels=settings.max_image_pixels,
            max_pending_requests=_UNLIMITED,
            # an image may have many tiles: together they have as many places as images
            max_running_requests=num_places,
            max_request_bytes=_UNLIMITED,
            # there is one client; it may have all but one
            max_decoded_images=MAX_DECODED_IMAGES + 1,
            max_waiting_tokens=_UNLIMITED,
        )
        clients = ModelClients(runners={model.backend_id: runner})
        self._core = Core(ServedModels({model.id: model}), clients, limits)
        self._model = model
        self._fields = fields
        self._request = None if "steps" in fields else parse_fields(GenerationFields, fields)[1]
        self._task = STEPS_TASK if self._request is None else self._request.task.id
        self._num_places = num_places
        self._places = asyncio.Semaphore(num_places)
        self._alone = asyncio.Lock()
        # A place may wait for a slow file, which must not keep another from being decoded.
        threads = ThreadPoolExecutor(2 * num_places, "images")
        asyncio.get_running_loop().set_default_executor(threads)

    async def rows(self, shard: Shard) -> list[Row]:
        """Return a row for each image of a shard."""
        images = images_of(shard)
        rows = []
        await self._places.acquire()
        while (image := await _READING.run(next, images, None)) is not None:
            row = asyncio.create_task(self._answered(image))
            row.add_done_callback(lambda _: self._places.release())
            rows.append(row)
            await self._places.acquire()
        self._places.release()
        return await asyncio.gather(*rows)

    async def rows_one_by_one(self, shard: Shard, attempt: Attempt) -> list[Row]:
        """Return the same rows, except for images that killed their worker, one at a time."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._alone)
            for _ in range(self._num_places):
                await stack.enter_async_context(self._places)
            images = images_of(shard)
            rows: list[Row] = []
            while True:
                position = len(rows)
                deaths = attempt.deaths[position]
                if deaths > _MAX_DEATHS:
                    problem = f"its worker died {deaths} times at image {position}"
                    raise RuntimeError(f"{shard.describe()}: {problem}")
                # reading the image from its file kills the worker, not the answer
                if deaths == _MAX_DEATHS:
                    return [*rows, self._lost(f"{shard.describe()}: the rest cannot be read")]
                await _READING.run(attempt.record, position)
                image = await _READING.run(next, images, None)
                if image is None:
                    return rows
                rows.append(self._lost(image.key) if deaths else await self._answered(image))

    async def _answered(self, image: InputImage) -> Row:
        """Return the row of an image, also for an error of the image or the model."""
        row = Row(image.key, self._model.id, self._task)
        try:
            data = await _READING.run(image.read)
            context = RequestContext(image.key, "offline", math.inf, needs_place=False)
            if self._request is None:
                return await self._analyzed(row, data, context)
            async with self._core.opened(data, context) as opened:
                width, height = opened.header.size_wh
                row = replace(row, width=width, height=height)
                answer = await self._core.answer(self._model, self._request, opened, context)
            return replace(
                row,
                result=RESULT.dump_python(RESULT.validate_python(answer.result), mode="json"),
                raw_text=answer.written.text,
                finish_reason=answer.written.finish_reason,
                calibrated=answer.is_calibrated,
                familiarity=answer.familiarity,
                left_out=None if answer.guarantee is None else answer.guarantee.left_out,
            )
        except OSError as error:
            return replace(row, error=RowError("unreadable_input", str(error)))
        except ServiceError as error:
            return replace(row, error=RowError(error.code, error.message))
        except Exception as error:  # a defect must not end the run
            logger.exception("%s failed", image.key)
            problem = f"{self._model.id} failed: {type(error).__name__}; the log has the cause"
            return replace(row, error=RowError("internal", problem))

    async def _analyzed(self, row: Row, data: bytes, context: RequestContext) -> Row:
        """Return the row of the answers to all steps."""
        analysis = await analyze(self._core, data, self._fields, context)
        steps = analysis_json(analysis, "").model_dump(mode="json")["steps"]
        for step in steps:
            for answer in step["answers"]:
                for name in _RUN_FIELDS & answer.keys():
                    del answer[name]
        width, height = analysis.image_size_wh
        return replace(row, width=width, height=height, result={"steps": steps})

    def _lost(self, key: str) -> Row:
        """Return the row of an image that is not answered again."""
        message = "its worker died twice: among other images, and with this image alone"
        return Row(key, self._model.id, self._task, error=RowError("worker_died", message))


class ShardActor:
    """Processes and writes shards, several at a time; Ray Data calls it in threads."""

    def __init__(self, job: Job, settings: Settings, output_uri: str) -> None:
        self._output = Output(output_uri, job)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="answers", daemon=True).start()
        answerer = load_answerer(job, settings)
        self._answerer = asyncio.run_coroutine_threadsafe(answerer, self._loop).result()

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
        "_temp_dir": tempfile.gettempdir(),  # the run's own, removed at its end
    }
    options: dict[str, Any] = {}
    if address is None:
        options = local
        # What Ray's dashboard would show grows by 3 MB for 10,000 images.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        os.environ.setdefault("RAY_enable_metrics_collection", "false")
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
    DataContext.get_current().enable_progress_bars = False
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
