"""One model's answer about a large image: about the whole image and its tiles, merged.

A tile is a view with its own image key, so that its features are cached. All views of a request are
in the decoder's batch together, up to `max_in_flight`, which bounds the pixels in memory. A view
that fails ends the others, and the answer.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

from service.admission.quotas import Quota
from service.errors import DeadlineExceeded, InvalidRequest
from service.images.decoding import LazyImage, in_thread
from service.images.flat_parts import flat_parts
from service.images.views import ImageView
from service.inference.prediction import Answer, Asked, StageTimes, TilesSummary
from service.inference.request_fields import TaskRequest
from service.inference.served_models import ServedModel
from service.runner_client.runner_client import WrittenAnswers
from service.runner_client.stream_replay import OnText
from tasks.results import Result
from tasks.scores import refine
from tasks.table import TASKS
from tasks.tiles.grid import Grid, PixelBox, Tiling, grid_of, tile_boxes
from tasks.tiles.merging import Merged, View, merge
from tasks.tiles.placement import placed
from wire.runner_messages import CacheOutcome, FoundFeatures
from wire.telemetry.tracing import span

_LOCATED_OCR = "ocr_with_regions"


@dataclass(frozen=True, slots=True)
class TileLimits:
    """Limits of one answer."""

    max_tiles: int
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class TiledModel:
    """A model that is asked about an image in tiles."""

    asked: Asked
    quota: Quota
    limits: TileLimits
    hold: Callable[[int], None]  # counts the memory of the decoded image

    async def admit(self, request: TaskRequest, image: LazyImage, tiles: list[ImageView]) -> None:
        """Count each tile as a request and an image of the key.

        Raise `Overloaded`, also if the tiles would not be answered before the deadline.
        """
        self.asked.check_cost(request, image, 1 + len(tiles))
        await self.quota.take_request(len(tiles))
        num_pixels = [math.prod(tile.header.size_wh) for tile in tiles]
        await self.quota.take_pixels(sum(num_pixels))


async def answer_in_tiles(
    tiled: TiledModel, request: TaskRequest, image: LazyImage, on_text: OnText | None = None
) -> Answer:
    """Return the answer of a model about an image in tiles; raise `ServiceError`.

    `on_text` receives the text of each view when it is complete, that of the whole image first.
    """
    start_s = time.monotonic()
    size_wh = image.header.size_wh
    whole = image.whole if isinstance(image, ImageView) else image
    whole.hold = tiled.hold
    asked = tiled.asked
    grid = _grid(tiled, request, size_wh)
    boxes = tile_boxes(grid, size_wh, request.fields.overlap)
    uneven = await _uneven(image, boxes, asked.deadline_s)
    summary = TilesSummary(grid.rows, grid.columns, len(uneven), len(boxes) - len(uneven), 0)
    if not uneven:
        return replace(await asked.answer(request, image, on_text), tiles=summary)
    planned_s = time.monotonic() - start_s
    tiles = [ImageView.of(image, box) for box in uneven]
    await tiled.admit(request, image, tiles)
    answers = await _answers(tiled, _about_view(asked.model, request), [image, *tiles], on_text)
    merge_start_s = time.monotonic()
    with span("merge"):
        results = [answer.result for answer in answers]
        merged = await in_thread(_merged, request, results, uneven, size_wh)
    now_s = time.monotonic()
    slowest = _slowest([answer.times for answer in answers])
    times = replace(
        slowest,
        preprocess_s=slowest.preprocess_s + planned_s,
        postprocess_s=slowest.postprocess_s + now_s - merge_start_s,
        total_s=now_s - start_s + image.open_s,
    )
    return Answer(
        asked.model,
        request,
        size_wh,
        merged.result,
        _written([answer.written for answer in answers]),
        times,
        is_calibrated=False,  # calibrations are fitted without tiles
        tiles=replace(summary, merged=merged.num_merged),
        num_views=len(answers),
    )


def _grid(tiled: TiledModel, request: TaskRequest, size_wh: tuple[int, int]) -> Grid:
    """Return the grid of an image; raise `InvalidRequest` above the maximum of tiles."""
    given = request.fields
    tiling = Tiling(given.tiles, given.overlap, given.min_object_px)
    tokens_per_side = math.isqrt(tiled.asked.model.manifest.num_image_tokens)
    grid = grid_of(tiling, size_wh, tokens_per_side, tiled.limits.max_tiles)
    if grid.num_tiles > tiled.limits.max_tiles:
        asked = f"tiles has {grid.rows} rows and {grid.columns} columns: {grid.num_tiles} tiles"
        raise InvalidRequest(f"{asked}; the service allows {tiled.limits.max_tiles}", "tiles")
    return grid


async def _uneven(image: LazyImage, boxes: Sequence[PixelBox], deadline_s: float) -> list[PixelBox]:
    """Return the tiles that are not flat."""
    if not boxes:
        return []
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            are_flat = await flat_parts(image, boxes)
    except TimeoutError as error:
        raise DeadlineExceeded("the image was not decoded before the deadline") from error
    return [box for box, is_flat in zip(boxes, are_flat, strict=True) if not is_flat]


def _about_view(model: ServedModel, request: TaskRequest) -> TaskRequest:
    """Return the request about a view: the text of tiles is merged by the places of its lines."""
    if request.task.id == "ocr" and _LOCATED_OCR in model.entry.task_ids:
        return replace(request, task=TASKS[_LOCATED_OCR])
    return request


async def _answers(
    tiled: TiledModel, request: TaskRequest, views: Sequence[LazyImage], on_text: OnText | None
) -> list[Answer]:
    in_flight = asyncio.Semaphore(tiled.limits.max_in_flight)

    async def answer(view: LazyImage) -> Answer:
        async with in_flight:
            return await tiled.asked.answer(request, view)

    answers: list[Answer] = []
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(answer(view)) for view in views]
            for each in running:
                answers.append(await each)
                if on_text is not None:
                    text = answers[-1].written.text
                    on_text(text if each is running[0] else f"\n{text}")
    except ExceptionGroup as errors:  # the others are cancelled
        raise errors.exceptions[0] from None
    return answers


def _merged(
    request: TaskRequest,
    results: Sequence[Result],
    tiles: Sequence[PixelBox],
    size_wh: tuple[int, int],
) -> Merged:
    views = [View((0, 0, *size_wh), results[0])]
    for box, result in zip(tiles, results[1:], strict=True):
        views.append(View(box, placed(result, box, size_wh)))
    merged = merge(request.task.id, views, size_wh)
    if request.fields.nms_iou is None:
        return merged
    return replace(merged, result=refine(merged.result, None, 0.0, request.fields.nms_iou))


def _slowest(times: Sequence[StageTimes]) -> StageTimes:
    """Return the longest time of each stage: the views are answered at the same time."""
    longest: dict[str, float] = {}
    for stage in fields(StageTimes):
        if stage.init:
            longest[stage.name] = max(getattr(each, stage.name) for each in times)
    return StageTimes(**longest)


def _written(parts: Sequence[WrittenAnswers]) -> WrittenAnswers:
    """Return the sequences of all views as one answer."""
    outcomes = {part.features.outcome for part in parts}
    outcome: CacheOutcome = "hit"
    if outcomes != {"hit"}:
        outcome = "miss" if "miss" in outcomes else "joined"
    is_truncated = any(part.finish_reason == "length" for part in parts)
    return WrittenAnswers(
        sequences=tuple(chain.from_iterable(part.sequences for part in parts)),
        text="\n".join(part.text for part in parts),
        finish_reason="length" if is_truncated else "stop",
        num_prompt_tokens=sum(part.num_prompt_tokens for part in parts),
        num_generated_tokens=sum(part.num_generated_tokens for part in parts),
        num_constrained_tokens=sum(part.num_constrained_tokens for part in parts),
        features=FoundFeatures(
            outcome=outcome,
            encode_s=max(part.features.encode_s for part in parts),
            queue_s=max(part.features.queue_s for part in parts),
        ),
        preprocess_s=max(part.preprocess_s for part in parts),
        queue_s=max(part.queue_s for part in parts),
        prefill_s=max(part.prefill_s for part in parts),
        decode_s=max(part.decode_s for part in parts),
    )
