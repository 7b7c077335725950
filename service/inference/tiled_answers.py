"""One model's answer about a large image: about the whole image and its tiles, merged.

A tile is a view with its own image key, so that its features are cached. All views of a request are
in the decoder's batch together, up to `max_in_flight`, which bounds the pixels in memory. A view
that fails ends the others, and the answer.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from service.admission.quotas import Quota
from service.errors import DeadlineExceeded, InvalidRequest
from service.images.decoding import LazyImage, in_thread
from service.images.flat_parts import flat_parts
from service.images.views import ImageView
from service.inference.prediction import (
    Answer,
    Asked,
    OnPiece,
    Piece,
    StageTimes,
    TilesSummary,
)
from service.inference.request_fields import TaskRequest
from service.runner_client.runner_client import WrittenAnswers
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
    # counts the memory of the decoded image, which is kept for later tiles; None keeps none
    hold: Callable[[int], None] | None

    async def plan(self, request: TaskRequest, image: LazyImage) -> "TilePlan":
        """Return the tiles to ask about, each counted as a request and an image of the key.

        Raise `InvalidRequest` above the maximum of tiles, `Overloaded` above a limit of the key or
        if the tiles would not be answered before the deadline, or the error of the image.
        """
        self.asked.check_cost(request, image, 1)  # before the image is decoded
        size_wh = image.header.size_wh
        given = request.fields
        tiling = Tiling(given.tiles, given.overlap, given.min_object_px)
        share = self.asked.model.min_object_share(request.task.id)
        grid = grid_of(tiling, size_wh, share, self.limits.max_tiles)
        if grid.num_tiles > self.limits.max_tiles:
            found = f"tiles has {grid.rows} rows and {grid.columns} columns: {grid.num_tiles} tiles"
            raise InvalidRequest(f"{found}; the service allows {self.limits.max_tiles}", "tiles")
        boxes = tile_boxes(grid, size_wh, given.overlap)
        are_flat: list[bool] = []
        if boxes:
            try:
                async with asyncio.timeout(self.asked.deadline_s - time.monotonic()):
                    are_flat = await flat_parts(image, boxes)
            except TimeoutError as error:
                message = "the image was not decoded before the deadline"
                raise DeadlineExceeded(message) from error
        uneven = [box for box, is_flat in zip(boxes, are_flat, strict=True) if not is_flat]
        if uneven:
            self.asked.check_cost(request, image, 1 + len(uneven))
            tiles = [ImageView.of(image, box) for box in uneven]
            await self.quota.take_request(len(tiles))
            await self.quota.take_pixels(sum(math.prod(tile.header.size_wh) for tile in tiles))
        return TilePlan(grid, tuple(uneven), len(boxes) - len(uneven))


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tiles that are asked about, and how many are not: they are flat."""

    grid: Grid
    boxes: tuple[PixelBox, ...]
    num_skipped: int

    def summary(self, num_merged: int) -> TilesSummary:
        rows = self.grid.rows
        columns = self.grid.columns
        return TilesSummary(rows, columns, len(self.boxes), self.num_skipped, num_merged)


async def answer_in_tiles(
    tiled: TiledModel, request: TaskRequest, image: LazyImage, on_piece: OnPiece | None = None
) -> Answer:
    """Return the answer of a model about an image in tiles; raise `ServiceError`.

    `on_piece` receives the text about each view that is complete, the whole image first.
    """
    start_s = time.monotonic()
    whole = image.whole if isinstance(image, ImageView) else image
    whole.hold = tiled.hold
    plan = await tiled.plan(request, image)
    if not plan.boxes:
        answer = await tiled.asked.answer(request, image, on_piece)
        return replace(answer, tiles=plan.summary(num_merged=0))
    planned_s = time.monotonic() - start_s
    answers = await _answers(tiled, request, image, plan.boxes, on_piece)
    is_fitted = (request.task.id, True) in tiled.asked.model.calibrations
    merge_start_s = time.monotonic()
    with span("merge"):
        merged = await in_thread(_merged, request, answers, plan)
    now_s = time.monotonic()
    slowest = StageTimes.slowest([answer.times for answer in answers])
    times = replace(
        slowest,
        preprocess_s=slowest.preprocess_s + planned_s,
        postprocess_s=slowest.postprocess_s + now_s - merge_start_s,
        total_s=now_s - start_s + image.open_s,
    )
    return Answer(
        tiled.asked.model,
        request,
        image.header.size_wh,
        merged.result,
        _written([answer.written for answer in answers], merged.num_left_out),
        times,
        is_calibrated=answers[0].is_calibrated and is_fitted,
        tiles=plan.summary(merged.num_merged),
        num_views=len(answers),
    )


async def _answers(
    tiled: TiledModel,
    request: TaskRequest,
    image: LazyImage,
    boxes: Sequence[PixelBox],
    on_piece: OnPiece | None,
) -> list[Answer]:
    """Return the answer about the image and about each tile, in pixels of the image."""
    asked = tiled.asked
    if request.task.id == "ocr" and _LOCATED_OCR in asked.model.entry.task_ids:
        # Text of tiles is merged by the places of its lines
        request = replace(request, task=TASKS[_LOCATED_OCR])
    calibrations = asked.model.calibrations
    if fitted := calibrations.get((request.task.id, True)):
        # A calibration does not change which score is higher: it may precede the merge
        calibrations = {(request.task.id, False): fitted}
        asked = replace(asked, model=replace(asked.model, calibrations=calibrations))
    in_flight = asyncio.Semaphore(tiled.limits.max_in_flight)
    size_wh = image.header.size_wh

    async def answer(box: PixelBox) -> Answer:
        async with in_flight:
            found = await asked.answer(request, ImageView.of(image, box))
        return replace(found, result=await in_thread(placed, found.result, box, size_wh))

    async def answer_whole() -> Answer:
        async with in_flight:
            return await asked.answer(request, image)

    answers: list[Answer] = []
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(answer_whole())]
            running += [group.create_task(answer(box)) for box in boxes]
            for box, each in zip([(0, 0, *size_wh), *boxes], running, strict=True):
                found = await each
                text = f"\n{found.written.text}" if answers else found.written.text
                answers.append(found)
                if on_piece is not None:
                    # Objects that are not proved are not shown before the answer either
                    is_hidden = request.fields.min_precision is not None
                    on_piece(Piece(text, None if is_hidden else View(box, found.result)))
    except ExceptionGroup as errors:  # the others are cancelled
        raise errors.exceptions[0] from None
    return answers


def _merged(request: TaskRequest, answers: Sequence[Answer], plan: TilePlan) -> Merged:
    size_wh = answers[0].image_size_wh
    boxes = [(0, 0, *size_wh), *plan.boxes]
    views = [View(box, answer.result) for box, answer in zip(boxes, answers, strict=True)]
    merged = merge(request.task.id, views, size_wh)
    if request.fields.nms_iou is None:
        return merged
    return replace(merged, result=refine(merged.result, None, 0.0, request.fields.nms_iou))


def _written(parts: Sequence[WrittenAnswers], num_left_out: int) -> WrittenAnswers:
    """Return the sequences of all views as one answer; it is cut if objects are left out."""
    outcomes = {part.features.outcome for part in parts}
    outcome: CacheOutcome = "hit"
    if outcomes != {"hit"}:
        outcome = "miss" if "miss" in outcomes else "joined"
    is_truncated = num_left_out > 0 or any(part.finish_reason == "length" for part in parts)
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
