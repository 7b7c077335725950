"""Answers about the images of shards with one model in this process, in the order of the input.

More images are in flight than the decoder has slots, over all shards that are answered at the same
time: encoder and decoder never wait for a shard to end. A shard whose worker died is answered image
by image, and nothing beside it.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from offline.job import Build, Job, differences
from offline.output import Attempt, Row, RowError
from offline.shards import InputImage, Shard, Unreadable, images_of
from runners.in_process_channel import load_channels, verify_artifacts
from service.admission.api_keys import UNLIMITED
from service.admission.fair_queue import FairQueue
from service.admission.places import RequestContext
from service.analysis.execution import analyze
from service.errors import ImageTooLarge, ServiceError
from service.images.decoding import ImageDecoder, LazyImage, in_thread
from service.inference.core import Core, core_limits
from service.inference.prediction import Answer, QueuedModel, proved
from service.inference.request_fields import GenerationFields, TaskRequest, parse_fields
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import (
    ServedModel,
    ServedModels,
    load_served_models,
    runner_options,
    served_entries,
)
from service.inference.tiled_answers import TiledModel
from service.schema.rendering import RESULT, analysis_json
from service.settings import Settings
from wire.artifacts.manifest import ArtifactError

logger = logging.getLogger(__name__)

TASK = "analyze"  # of rows that answer steps
Steps = Sequence[Mapping[str, Any]]

_CLIENT = "offline"  # the only one; it may have all places of the decoder of images but one
_UNBOUNDED = 1_000_000  # sequences queued: the places bound the images
_UNLIMITED = 1 << 60  # tokens and bytes: the places of the run bound what is in progress
_IMAGES_PER_SLOT = 2
# Ids and times differ from run to run, the rest is in the row.
_RUN_FIELDS = {"id", "task", "image", "usage", "vision_cache", "timings_ms", "labels"}
_MAX_DEATHS = 2  # workers that died at the same image


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its runner, and the request made for every image, or the steps."""

    model: ServedModel
    runner: RunnerClient
    request: TaskRequest | Steps


def load_model(job: Job, settings: Settings) -> LoadedModel:
    """Load the artifacts; raise `ArtifactError` if this host would not answer as the job's."""
    models = load_served_models(settings)
    model = models[job.build.model]
    if differing := differences(asdict(job.build), asdict(Build.of(model, job.fields, settings))):
        message = "export the same checkpoint, with the same catalog and calibration, on every host"
        raise ArtifactError(f"this host has another build than the job ({differing}): {message}")
    base = models[model.runner_id].manifest
    options = runner_options(model.runner_id, settings, served_entries(settings))
    limits = replace(options.limits, max_waiting=_UNBOUNDED)
    # Every image is new: a cache would only take memory.
    options = replace(options, limits=limits, max_cache_bytes=0, adapters_folder=None)
    verify_artifacts(base, options)
    (channel,) = load_channels([(base, options)])
    runner = RunnerClient(base.model_id, channel)
    if "steps" in job.fields:
        return LoadedModel(model, runner, job.fields["steps"])
    _, request = parse_fields(GenerationFields, job.fields)
    return LoadedModel(model, runner, request)


class Answerer:
    """Processes shards; must be created and used in one event loop."""

    def __init__(self, loaded: LoadedModel, settings: Settings) -> None:
        num_places = settings.max_slots * _IMAGES_PER_SLOT
        self._loaded = loaded
        self._task = TASK
        if isinstance(loaded.request, TaskRequest):
            self._task = loaded.request.task.id
        else:
            self._analyzer = Analyzer(loaded.request, loaded.model, loaded.runner, settings)
        self._decoder = ImageDecoder(core_limits(settings).images, settings.max_decoded + 1)
        self._max_tiles = settings.max_tiles
        # An image may have many tiles: together they have as many places as images
        self._queue = FairQueue(loaded.model.id, num_places, _UNLIMITED)
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
        while (image := await in_thread(next, images, None)) is not None:
            row = asyncio.create_task(self._answered(image))
            row.add_done_callback(lambda _: self._places.release())
            rows.append(row)
            await self._places.acquire()
        self._places.release()
        return await asyncio.gather(*rows)

    async def rows_one_by_one(self, shard: Shard, attempt: Attempt) -> list[Row]:
        """Return the same rows, except for images that killed their worker, one at a time."""
        async with self._alone, self._all_places():
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
                await in_thread(attempt.record, position)
                image = await in_thread(next, images, None)
                if image is None:
                    return rows
                rows.append(self._lost(image.key) if deaths else await self._answered(image))

    @asynccontextmanager
    async def _all_places(self) -> AsyncIterator[None]:
        for _ in range(self._num_places):
            await self._places.acquire()
        try:
            yield
        finally:
            for _ in range(self._num_places):
                self._places.release()

    async def _answered(self, image: InputImage) -> Row:
        """Return the row of an image, also for an error of the image or the model."""
        model = self._loaded.model.id
        request = self._loaded.request
        width = height = None
        try:
            data = await in_thread(image.read)
            if not isinstance(request, TaskRequest):
                return await self._analyzer.row(image.key, data)
            opened = LazyImage(data, self._decoder, _CLIENT)
            await opened.open()
            width, height = opened.header.size_wh
            answer = await self._answer(request, opened)
            return Row(
                image.key,
                answer.model.id,
                answer.request.task.id,
                *answer.image_size_wh,
                result=RESULT.dump_python(RESULT.validate_python(answer.result), mode="json"),
                raw_text=answer.written.text,
                finish_reason=answer.written.finish_reason,
                calibrated=answer.is_calibrated,
                left_out=None if answer.guarantee is None else answer.guarantee.left_out,
            )
        except (Unreadable, OSError) as error:
            failed = RowError("unreadable_input", str(error))
        except ServiceError as error:
            failed = RowError(error.code, error.message)
            if isinstance(error, ImageTooLarge) and error.size_wh is not None:
                width, height = error.size_wh
        except Exception as error:  # a defect must not end the run
            logger.exception("%s failed", image.key)
            message = f"{model} failed: {type(error).__name__}; the log has the cause"
            failed = RowError("internal", message)
        return Row(image.key, model, self._task, width, height, error=failed)

    def _lost(self, key: str) -> Row:
        """Return the row of an image that is not answered again."""
        message = "its worker died twice: among other images, and with this image alone"
        error = RowError("worker_died", message)
        return Row(key, self._loaded.model.id, self._task, error=error)

    async def _answer(self, request: TaskRequest, image: LazyImage) -> Answer:
        model = self._loaded.model
        queued = QueuedModel(model, self._loaded.runner, self._queue, _CLIENT, math.inf)
        if request.fields.tiles == "off":
            answer = await queued.answer(request, image)
        else:
            tiled = TiledModel(queued, UNLIMITED, self._max_tiles, self._num_places, None)
            answer = await tiled.answer(request, image)
        return answer if request.fields.min_precision is None else proved(answer)


class Analyzer:
    """Answers the steps about images, without a limit on how many; used in one event loop."""

    def __init__(
        self,
        steps: Steps,
        model: ServedModel,
        runner: RunnerClient,
        settings: Settings,
    ) -> None:
        limits = replace(
            core_limits(settings),
            max_decoded_images=settings.max_decoded + 1,
            max_pending=_UNLIMITED,
            max_running=2 * settings.max_slots,  # an image may have many tiles
            max_waiting_tokens=_UNLIMITED,
            max_bytes=_UNLIMITED,
            max_bytes_of_client=_UNLIMITED,
        )
        self._model = model
        models = ServedModels({model.id: model})
        self._core = Core(models, {model.runner_id: runner}, limits)
        self._steps = steps

    async def row(self, key: str, data: bytes) -> Row:
        """Return the row of an image; raise the error of the image."""
        context = RequestContext(key, "offline", math.inf, needs_place=False)
        analysis = await analyze(self._core, data, {"steps": self._steps}, context)
        document = analysis_json(analysis, "").model_dump(mode="json")
        for step in document["steps"]:
            for answer in step["answers"]:
                for name in _RUN_FIELDS & answer.keys():
                    del answer[name]
        size_wh = analysis.image_size_wh
        return Row(key, self._model.id, TASK, *size_wh, result={"steps": document["steps"]})
