"""One model's answer to one task: prompts and cost, the call of the runner, the parsed result.

With `tiles` it is about the whole image and about its tiles, merged. A tile is a view with its own
image key, so that its features are cached. All views of a request are in the decoder's batch
together, up to `max_in_flight`, which bounds the pixels in memory. A view that fails ends the
others, and the answer. Flat tiles, in which there is nothing to find, such as paper or an even sky,
are not asked about. It knows no HTTP.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.files import PixelBox
from service.admission.api_keys import Quota
from service.admission.fair_queue import FairQueue
from service.admission.threads import POSTPROCESSING
from service.errors import DeadlineExceeded, InvalidRequest, ServiceError
from service.images.decoding import ImageView, LazyImage
from service.inference.models import ModelCall, ModelClients, ServedModel
from service.inference.request_fields import TaskRequest
from service.inference.runner_calls import WrittenAnswers
from service.telemetry.metrics import UNFAMILIAR_IMAGES
from tasks.errors import ParameterError, UnsupportedTask
from tasks.parsing import GeneratedText
from tasks.prompts import Prompt
from tasks.results import Result, TextResult
from tasks.scores import Calibration, Guarantee, is_unfamiliar, keep_proved, refine, round_scores
from tasks.table import TASKS
from tasks.tiles.grid import Tiling, grid_of, tile_boxes
from tasks.tiles.merging import Merged, View, merge, placed
from wire.pixels import Pixels
from wire.telemetry.tracing import span

_CHARACTERS_PER_TOKEN = 4  # English text; only runners have tokenizers
# Estimate if max_new_tokens is unset: a checkpoint's own limit is far above its usual answers
_TYPICAL_NEW_TOKENS = 256
_MAX_SHORT_CHARS = 1000
_LOCATED_OCR = "ocr_with_regions"
_BLOCK_PX = 4
_CELL_BLOCKS = 4  # a cell has 16 pixels
_MAX_LEVELS = 8
_MAX_TILES = 64  # one answer: each costs as much as an image

Stage = Literal[
    "preprocess",
    "encode_queue",
    "encode",
    "decode_queue",
    "prefill",
    "decode",
    "postprocess",
    "total",
]
Busy = NDArray[np.bool_]  # (rows, columns) of cells: a square that begins there is not flat


@dataclass(frozen=True, slots=True)
class TilesSummary:
    """The tiles of an image: what was asked of the model, and what was merged."""

    rows: int
    columns: int
    asked: int
    skipped: int  # flat
    merged: int  # objects that another view found too, or a part of


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer, before an interface renders it."""

    model: ServedModel
    request: TaskRequest
    image_size_wh: tuple[int, int]
    result: Result
    written: WrittenAnswers
    times_s: Mapping[Stage, float]
    is_calibrated: bool = False  # scores are probabilities
    familiarity: float | None = None  # p-value that the image is like those of the calibration
    tiles: TilesSummary | None = None
    guarantee: Guarantee | None = None  # set with `min_precision`


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a stream's text; in tiles of a view, with what was found there."""

    text: str
    view: View | None = None


OnPiece = Callable[[Piece], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedModel:
    """A model that answers one client in its turn in a fair queue."""

    model: ServedModel
    clients: ModelClients
    queue: FairQueue
    quota: Quota  # names the client
    deadline_s: float  # time.monotonic()
    max_in_flight: int  # tiles
    # counts the memory of the decoded image, which is retained for later tiles; None retains none
    hold: Callable[[int], None] | None = None
    with_tiles: bool = False  # answers are about views, whose scores are calibrated apart

    def calibration(self, task_id: str) -> Calibration | None:
        calibrations = self.model.calibrations
        calibration = calibrations.get((task_id, False))
        if self.with_tiles:
            calibration = calibrations.get((task_id, True), calibration)
        return calibration

    async def answer(
        self, request: TaskRequest, image: LazyImage, on_piece: OnPiece | None = None
    ) -> Answer:
        """Wait for the model's turn, and return its answer; raise `ServiceError`."""
        prompts, cost = task_prompts(self.model, request, image.header.size_wh)
        async with self.queue.admitted(self.quota.name, cost, self.deadline_s) as waited_s:
            start_s = time.monotonic()
            try:
                async with asyncio.timeout(self.deadline_s - start_s):
                    return await self._answer(request, image, prompts, waited_s, on_piece)
            except TimeoutError as error:
                message = f"{self.model.id} did not answer before the deadline"
                raise DeadlineExceeded(message) from error

    async def _answer(
        self,
        request: TaskRequest,
        image: LazyImage,
        prompts: Sequence[Prompt],
        waited_s: float,
        on_piece: OnPiece | None,
    ) -> Answer:
        start_s = time.monotonic()
        model = self.model
        on_text = None if on_piece is None else lambda text: on_piece(Piece(text))
        call = ModelCall(
            request=request,
            prompts=prompts,
            timeout_s=max(0.0, self.deadline_s - start_s),
            client=self.quota.name,
        )
        written = await model.write(self.clients, call, image, on_text)
        parse_start_s = time.monotonic()
        familiarity = None
        calibration = self.calibration(request.task.id)
        if calibration is not None:
            familiarity = _familiarity(model, calibration, request, image, written)
            # Fitted on the most likely answers; a sampled one with the score is less often right.
            if request.fields.temperature > 0 or is_unfamiliar(familiarity):
                calibration = None
        size_wh = image.header.size_wh
        parse = partial(_parse, model, request, written, size_wh, calibration)
        # a thread takes longer to start than a short answer to parse; masks are decoded
        is_short = len(written.text) <= _MAX_SHORT_CHARS
        has_masks = request.task.result_kind == "instances"
        with span("postprocess"):
            result = parse() if is_short and not has_masks else await POSTPROCESSING.run(parse)
        end_s = time.monotonic()
        times_s: dict[Stage, float] = {
            "preprocess": image.open_s + written.preprocess_s,
            "encode_queue": waited_s + written.features.queue_s,
            "encode": written.features.encode_s,
            "decode_queue": written.queue_s,
            "prefill": written.prefill_s,
            "decode": written.decode_s,
            "postprocess": end_s - parse_start_s,
            "total": image.open_s + waited_s + end_s - start_s,
        }
        is_calibrated = calibration is not None
        if is_calibrated:
            is_calibrated = all(item.score is not None for item in result.items)
        return Answer(
            model=model,
            request=request,
            image_size_wh=size_wh,
            result=result,
            written=written,
            times_s=times_s,
            is_calibrated=is_calibrated,
            familiarity=familiarity,
        )

    def check_cost(self, request: TaskRequest, image: LazyImage, num_views: int) -> None:
        """Raise `Overloaded` if the answers about all views would not be ready in time."""
        _, cost = task_prompts(self.model, request, image.header.size_wh)
        self.queue.check(self.quota.name, num_views * cost, self.deadline_s)


def task_prompts(
    model: ServedModel, request: TaskRequest, image_size_wh: tuple[int, int]
) -> tuple[tuple[Prompt, ...], int]:
    """Return the prompts of the task and their cost in tokens, which is an estimate.

    Raise `ServiceError` if the model does not offer the task.
    """
    if request.fields.min_precision is not None:
        model.find_proof(request)
    try:
        prompts = model.language.task_prompts(
            model.entry, request.task.id, request.parameters, image_size_wh
        )
    except UnsupportedTask as error:
        raise ServiceError(str(error), error.param, "unsupported_task") from error
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    num_new = request.fields.max_new_tokens or _TYPICAL_NEW_TOKENS
    num_characters = sum(len(segment.text) for segment in chain(*prompts))
    num_written = len(prompts) * (model.num_image_tokens + num_new)
    return prompts, num_written + num_characters // _CHARACTERS_PER_TOKEN


def _familiarity(
    model: ServedModel,
    calibration: Calibration,
    request: TaskRequest,
    image: LazyImage,
    written: WrittenAnswers,
) -> float | None:
    """Return that of a whole image; raise `ServiceError` if nothing is proved about it."""
    if isinstance(image, ImageView):
        return None
    familiarity = model.familiarity(calibration, written.features)
    if is_unfamiliar(familiarity):
        UNFAMILIAR_IMAGES.labels(calibration.model).inc()
        if request.fields.min_precision is not None:
            problem = f"the image is unlike those that {calibration.model} was calibrated on"
            message = f"{problem}, and nothing is proved about it; omit min_precision"
            raise ServiceError(message, "min_precision", "unsupported_task")
    return familiarity


def _parse(
    model: ServedModel,
    request: TaskRequest,
    written: WrittenAnswers,
    size_wh: tuple[int, int],
    calibration: Calibration | None,
) -> Result:
    texts: list[GeneratedText] = []
    for sequence in written.sequences:
        ends = sequence.token_ends
        texts.append(GeneratedText(sequence.text, ends, sequence.logprobs, sequence.finish_reason))
    result = model.parse(request, size_wh, texts)
    min_score = request.fields.min_score
    nms_iou = request.fields.nms_iou
    is_refined = calibration is not None or min_score > 0 or nms_iou is not None
    if not is_refined or isinstance(result, TextResult):
        return result
    return refine(result, calibration, min_score, nms_iou)


async def answer_about(
    queued: QueuedModel, request: TaskRequest, image: LazyImage, on_piece: OnPiece | None = None
) -> Answer:
    """Return the answer about an image, with proved objects alone if `min_precision` is set.

    Scores are rounded here, after all that compares them.
    In tiles, `on_piece` receives the text about each view that is complete, the whole image first.
    Raise `ServiceError`.
    """
    answering = queued.answer if request.fields.tiles == "off" else partial(_tiled_answer, queued)
    answer = await answering(request, image, on_piece)
    if request.fields.min_precision is None:
        return replace(answer, result=round_scores(answer.result))
    result, guarantee = keep_proved(answer.result, answer.model.find_proof(answer.request))
    return replace(answer, result=round_scores(result), guarantee=guarantee)


async def _tiled_answer(
    queued: QueuedModel, request: TaskRequest, image: LazyImage, on_piece: OnPiece | None
) -> Answer:
    start_s = time.monotonic()
    whole = image.whole if isinstance(image, ImageView) else image
    whole.hold = queued.hold
    boxes, tiles = await _tiles(queued, request, image)
    if not boxes:
        answer = await queued.answer(request, image, on_piece)
        return replace(answer, tiles=tiles)
    planned_s = time.monotonic() - start_s
    answers = await _answers(queued, request, image, boxes, on_piece)
    merge_start_s = time.monotonic()
    with span("merge"):
        merged = await POSTPROCESSING.run(_merged, request, answers, boxes)
    now_s = time.monotonic()
    times_s: dict[Stage, float] = {}  # the views were answered at the same time
    for stage in answers[0].times_s:
        times_s[stage] = max(answer.times_s[stage] for answer in answers)
    times_s["preprocess"] += planned_s
    times_s["postprocess"] += now_s - merge_start_s
    times_s["total"] = now_s - start_s + image.open_s
    is_fitted = (request.task.id, True) in queued.model.calibrations
    return Answer(
        model=queued.model,
        request=request,
        image_size_wh=image.header.size_wh,
        result=merged.result,
        written=_joined([answer.written for answer in answers], is_cut=merged.num_left_out > 0),
        times_s=times_s,
        is_calibrated=is_fitted and all(answer.is_calibrated for answer in answers),
        familiarity=answers[0].familiarity,
        tiles=replace(tiles, merged=merged.num_merged),
    )


async def _tiles(
    queued: QueuedModel, request: TaskRequest, image: LazyImage
) -> tuple[list[PixelBox], TilesSummary]:
    """Return the tiles to ask about, each counted as a request and an image of the key."""
    queued.check_cost(request, image, 1)  # before the image is decoded
    size_wh = image.header.size_wh
    fields = request.fields
    tiling = Tiling(fields.tiles, fields.overlap, fields.min_object_px)
    share = queued.model.min_object_share(request.task.id)
    grid = grid_of(tiling, size_wh, share, _MAX_TILES)
    if grid.num_tiles > _MAX_TILES:
        size = f"{grid.rows} rows and {grid.columns} columns: {grid.num_tiles} tiles"
        raise InvalidRequest(f"tiles has {size}; the service allows {_MAX_TILES}", "tiles")
    boxes = tile_boxes(grid, size_wh, fields.overlap)
    try:
        async with asyncio.timeout(queued.deadline_s - time.monotonic()):
            uneven = await uneven_parts(image, boxes) if boxes else []
    except TimeoutError as error:
        raise DeadlineExceeded("the image was not decoded before the deadline") from error
    if uneven:
        queued.check_cost(request, image, 1 + len(uneven))
        queued.quota.take_request(len(uneven))
        sizes = [ImageView.of(image, box).header.size_wh for box in uneven]
        queued.quota.take_pixels(sum(map(math.prod, sizes)))
    num_flat = len(boxes) - len(uneven)
    return uneven, TilesSummary(grid.rows, grid.columns, len(uneven), num_flat, merged=0)


async def _answers(
    queued: QueuedModel,
    request: TaskRequest,
    image: LazyImage,
    boxes: Sequence[PixelBox],
    on_piece: OnPiece | None,
) -> list[Answer]:
    if request.task.id == "ocr" and _LOCATED_OCR in queued.model.entry.task_ids:
        # Text of tiles is merged by the places of its lines
        request = replace(request, task=TASKS[_LOCATED_OCR])
    # A calibration does not change which score is higher: it may precede the merge
    queued = replace(queued, with_tiles=True)
    in_flight = asyncio.Semaphore(queued.max_in_flight)
    size_wh = image.header.size_wh
    whole: PixelBox = (0, 0, *size_wh)

    async def answer_view(box: PixelBox) -> Answer:
        async with in_flight:  # a view that waited finds the image decoded
            view = image if box is whole else ImageView.of(image, box)
            answer = await queued.answer(request, view)
        if view is image:
            return answer
        result = answer.result
        if is_unfamiliar((await running[0]).familiarity):  # the whole image
            about = (request, answer.written, answer.image_size_wh)
            result = await POSTPROCESSING.run(partial(_parse, answer.model, *about, None))
        return replace(answer, result=await POSTPROCESSING.run(placed, result, box, size_wh))

    answers: list[Answer] = []
    views = [whole, *boxes]
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(answer_view(box)) for box in views]
            for box, answering in zip(views, running, strict=True):
                answer = await answering
                text = f"\n{answer.written.text}" if answers else answer.written.text
                answers.append(answer)
                if on_piece is not None:
                    # Objects that are not proved are not shown before the answer either
                    is_hidden = request.fields.min_precision is not None
                    view = None if is_hidden else View(box, round_scores(answer.result))
                    on_piece(Piece(text, view))
    except ExceptionGroup as errors:  # the others are cancelled
        raise errors.exceptions[0] from None
    return answers


def _merged(request: TaskRequest, answers: Sequence[Answer], boxes: Sequence[PixelBox]) -> Merged:
    size_wh = answers[0].image_size_wh
    results = [answer.result for answer in answers]
    views = list(map(View, [(0, 0, *size_wh), *boxes], results))
    merged = merge(request.task.id, views, size_wh)
    if request.fields.nms_iou is None:
        return merged
    return replace(merged, result=refine(merged.result, None, 0.0, request.fields.nms_iou))


def _joined(parts: Sequence[WrittenAnswers], is_cut: bool) -> WrittenAnswers:
    """Return the sequences of all views as one answer; it is cut if objects are left out."""
    outcome = min({part.features.outcome for part in parts}, key=("miss", "joined", "hit").index)
    features = parts[0].features.model_copy(update={"outcome": outcome})
    return replace(
        parts[0],
        sequences=tuple(chain.from_iterable(part.sequences for part in parts)),
        features=features,
        image_tokens=sum(part.image_tokens for part in parts),
        is_cut=is_cut,
    )


async def uneven_parts(image: LazyImage, parts: Sequence[PixelBox]) -> list[PixelBox]:
    """Return the parts of an image that are not flat; decode it if none is known yet.

    In a flat part the means of blocks of 4 x 4 pixels differ by at most 8 levels of a colour
    channel, in every square of 32 x 32 pixels on a grid of 16. So a shading passes, and noise, but
    nothing of 8 pixels: it fills such a block.
    """
    left = 0
    top = 0
    if isinstance(image, ImageView):
        left, top, _, _ = image.box
        image = image.whole
    width, height = image.header.size_wh
    num_blocks_wh = (math.ceil(width / _BLOCK_PX), math.ceil(height / _BLOCK_PX))
    busy = image.decoder.busy_cells.get(image.header.digest)
    if busy is None:
        blocks = await image.resized(num_blocks_wh, Image.Resampling.BOX)
        busy = await POSTPROCESSING.run(busy_cells, blocks)
        image.decoder.busy_cells[image.header.digest] = busy
    # blocks are smaller where a side is no multiple of 4 pixels
    cell_width = _CELL_BLOCKS * width / num_blocks_wh[0]
    cell_height = _CELL_BLOCKS * height / num_blocks_wh[1]
    uneven: list[PixelBox] = []
    for part in parts:
        x1, y1, x2, y2 = part
        rows = slice(int((top + y1) / cell_height), int((top + y2 - 1) / cell_height) + 1)
        columns = slice(int((left + x1) / cell_width), int((left + x2 - 1) / cell_width) + 1)
        if busy[rows, columns].any():
            uneven.append(part)
    return uneven


def busy_cells(blocks: Pixels) -> Busy:
    """Return which squares of 2 x 2 cells are not flat; `blocks`: (H, W, 3) of means."""
    levels = _of_squares(blocks, np.maximum) - _of_squares(blocks, np.minimum)
    busy: Busy = levels.max(axis=2) > _MAX_LEVELS
    return busy


def _of_squares(blocks: Pixels, extreme: np.ufunc) -> Pixels:
    """Return the extreme of each cell and its neighbours to the right and below."""
    height, width, _ = blocks.shape
    margins = ((0, -height % _CELL_BLOCKS), (0, -width % _CELL_BLOCKS), (0, 0))
    padded = np.pad(blocks, margins, mode="edge")
    num_columns = padded.shape[1] // _CELL_BLOCKS
    split = padded.reshape(-1, _CELL_BLOCKS, num_columns, _CELL_BLOCKS, 3)
    cells = np.pad(extreme.reduce(split, axis=(1, 3)), ((0, 1), (0, 1), (0, 0)), mode="edge")
    beside = extreme(cells[:, :-1], cells[:, 1:])
    squares: Pixels = extreme(beside[:-1], beside[1:])
    return squares
