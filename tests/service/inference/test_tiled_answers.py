"""A large image is asked about whole and in tiles; the answers are merged."""

import asyncio
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from imaging.files import ImageLimits, PixelBox
from service.admission.api_keys import Quota, QuotaLimits
from service.admission.places import RequestContext
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.images.decoding import ImageDecoder, LazyImage
from service.inference.core import Core
from service.inference.models import ServedModels
from service.inference.prediction import Answer, Piece, TilesSummary, uneven_parts
from tasks.results import DetectionsResult, TextResult
from tasks.scores import Calibration
from tasks.tiles.merging import View
from tests.support.fake_runners import FakeChannel, FakeDecoder, FakeEncoder, written
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    NUM_IMAGE_TOKENS,
    OD_PROMPT,
    PNG,
    context,
    encoded,
    make_core,
    predict,
    run,
    runner_model,
    until,
)
from wire.runner_messages import Failed, Outcome, SequenceSpec

OCR_PROMPT = "What is the text in the image, with regions?"
# The red of the first pixel names a tile. Its first pixels show the mark only in the whole image,
# where it is smaller.
MARK = (36, 0, 60, 20)
LEFT = 10
RIGHT = 20
TASK: dict[str, Any] = {"task": "object_detection"}
COUNTED: dict[str, Any] = TASK | {"tiles": "1x2", "overlap": 0.0}


def picture(size_wh: tuple[int, int] = (800, 400)) -> bytes:
    """Return an image of two halves, each with something in it."""
    width, height = size_wh
    image = Image.new("RGB", size_wh, (LEFT, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width // 2, 0, width, height), (RIGHT, 0, 0))
    draw.rectangle(MARK, (255, 255, 255))
    draw.rectangle((width - 60, height // 2, width - 30, height // 2 + 30), (255, 255, 255))
    return encoded(image)


class LookingDecoder(FakeDecoder):
    """Answers by the view: whole image, left or right tile."""

    def __init__(
        self, answers: Mapping[str, tuple[str | Failed, str | Failed, str | Failed]]
    ) -> None:
        FakeDecoder.__init__(self, {})
        self.views = answers

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        """Return the answer about the view."""
        self.specs.extend(sequences)
        view = 1 if int(image_features[0, 0]) == LEFT else 2
        if image_features.max() > RIGHT:
            view = 0
        await self._wait(self.released)
        outcomes: list[Outcome] = []
        for spec in sequences:
            answer = self.views["".join(text for text, _ in spec.segments)][view]
            outcomes.append(answer if isinstance(answer, Failed) else written(answer))
        return outcomes


def box(label: str, x1: int, y1: int, x2: int, y2: int) -> str:
    return f"{label}<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>"


def core_of(
    whole: str | Failed,
    left: str | Failed,
    right: str | Failed,
    prompt: str = OD_PROMPT,
    **options: Any,
) -> Core:
    return make_core(
        decoders={FLORENCE_ID: LookingDecoder({prompt: (whole, left, right)})}, **options
    )


def boxes(answer: Answer | View) -> list[tuple[int, ...]]:
    assert isinstance(answer.result, DetectionsResult)
    return [tuple(map(round, detection.box)) for detection in answer.result.detections]


def asked(core: Core, **fields: Any) -> Answer:
    return predict(core, picture(), **(COUNTED | fields))


def test_boxes_of_all_views() -> None:
    core = core_of(
        box("cat", 100, 100, 300, 500),
        box("cat", 201, 99, 602, 501) + box("dog", 500, 500, 600, 600),
        box("dog", 500, 500, 600, 600),
    )
    answer = asked(core)
    assert boxes(answer) == [(80, 40, 240, 200), (200, 200, 240, 240), (600, 200, 640, 240)]
    assert answer.tiles == TilesSummary(rows=1, columns=2, asked=2, skipped=0, merged=1)
    assert answer.image_size_wh == (800, 400)
    assert len(answer.written.sequences) == 3
    assert answer.written.usage.image_tokens == 3 * answer.model.num_image_tokens
    assert not answer.is_calibrated
    times_s = answer.times_s
    assert 0 < max(times_s["preprocess"], times_s["postprocess"]) < times_s["total"]


def test_image_without_tiles() -> None:
    flat = encoded(Image.new("RGB", (800, 400), (LEFT, 0, 0)))
    for image, tiles, skipped in ((picture(), 1, 0), (flat, "1x2", 2)):
        cat = box("cat", 1, 1, 5, 5)
        core = core_of(cat, cat, "unasked")
        answer = predict(core, image, **TASK, tiles=tiles)
        assert len(boxes(answer)) == 1
        assert answer.tiles is not None
        assert (answer.tiles.asked, answer.tiles.skipped) == (0, skipped)
        assert len(answer.written.sequences) == 1


def test_tiles_are_encoded_once() -> None:
    encoder = FakeEncoder()
    core = make_core({FLORENCE_ID: encoder})
    outcomes = [asked(core).written.features.outcome for _ in range(2)]
    words: dict[str, Any] = {"task": "open_vocabulary_detection", "labels": ["red circle"]}
    assert (outcomes, len(encoder.shapes)) == (["miss", "hit"], 3)
    channel = core.clients.runners[FLORENCE_ID].channel
    assert isinstance(channel, FakeChannel)
    # The image is decoded already: no call is made only to learn that its pixels are missing
    assert [call.pixels is not None for call in channel.calls] == [True] * 3 + [False] * 3
    assert asked(core, **words).written.features.outcome == "hit"


def test_text_of_tiles() -> None:
    def line(text: str, x1: int, x2: int) -> str:
        return text + "".join(f"<loc_{bin}>" for bin in (x1, 100, x2, 100, x2, 200, x1, 200))

    core = core_of("", line("HELLO wor", 500, 999), line("rld", 0, 200), OCR_PROMPT)
    answer = asked(core, task="ocr")
    assert answer.result == TextResult("HELLO wor rld", True)
    assert answer.request.task.id == "ocr"
    overlapping = core_of("", line("HELLO worl", 500, 999), line("orld", 0, 200), OCR_PROMPT)
    assert asked(overlapping, task="ocr").result == TextResult("HELLO world", True)


def test_suppression_also_compares_views() -> None:
    core = core_of(box("a", 0, 0, 200, 400), box("a", 100, 100, 900, 800), "")
    assert len(boxes(asked(core))) == 2
    core = core_of(box("a", 0, 0, 200, 400), box("a", 100, 100, 900, 800), "")
    assert len(boxes(asked(core, nms_iou=0.0))) == 1


def calibrated(core: Core, *probabilities: float, min_object_share: float | None = None) -> None:
    """Calibrate the model to these probabilities, without tiles and in tiles."""
    model = runner_model(core.models)
    points: dict[tuple[str, bool], Calibration] = {}
    for with_tiles, probability in zip((False, True), probabilities, strict=False):
        flat = ((1.0,), (probability,), with_tiles, min_object_share)
        points["object_detection", with_tiles] = Calibration(model.id, "c", TASK["task"], *flat)
    core.models = ServedModels({model.id: dataclasses.replace(model, calibrations=points)})


def test_scores_are_calibrated_after_merging() -> None:
    core = core_of("", box("cat", 100, 100, 300, 500), "")
    calibrated(core, 0.5, 0.25)
    for fields in ({"min_score": 0.25}, {"temperature": 1.0}):
        answer = asked(core, **fields)
        assert isinstance(answer.result, DetectionsResult)
        assert answer.is_calibrated == ("min_score" in fields)
        assert (answer.result.detections[0].score == 0.25) == answer.is_calibrated
    assert boxes(asked(core, min_score=0.3)) == []
    core = core_of("", box("cat", 100, 100, 300, 500), "")
    calibrated(core, 0.5)
    answer = asked(core)
    assert isinstance(answer.result, DetectionsResult)
    assert (answer.result.detections[0].score, answer.is_calibrated) == (0.5, False)
    assert predict(core, picture(), **TASK).is_calibrated


async def test_views_are_streamed() -> None:
    cat = box("cat", 100, 100, 300, 500)
    dog = box("dog", 500, 500, 600, 600)
    core = core_of(cat, "", dog)

    events = [event async for event in core.stream(picture(), COUNTED, context())]
    pieces = [event for event in events if isinstance(event, Piece)]
    answer = events[-1]
    assert isinstance(answer, Answer)
    texts = [piece.text for piece in pieces]
    assert texts == [cat, "\n", f"\n{dog}"]
    assert "".join(texts) == answer.written.text
    views = [piece.view for piece in pieces if piece.view is not None]
    assert [view.box for view in views] == [(0, 0, 800, 400), (0, 0, 400, 400), (400, 0, 800, 400)]
    assert list(map(boxes, views)) == [[(80, 40, 240, 200)], [], [(600, 200, 640, 240)]]


def test_too_many_tiles() -> None:
    with pytest.raises(InvalidRequest, match=r"9 rows and 9 columns: 81 tiles; .* allows 64"):
        asked(make_core(), tiles="9x9")
    answer = asked(make_core(max_image_pixels=1_000_000), tiles="auto", min_object_px=1)
    assert answer.tiles is not None
    assert answer.tiles.rows * answer.tiles.columns <= 64
    most = asked(make_core(), tiles="8x8").tiles
    assert most is not None
    assert most.asked + most.skipped == 64


def test_auto_fits_the_smallest_object() -> None:
    core = make_core()
    calibrated(core, 0.5)
    asked_for = {"tiles": "auto", "min_object_px": 50}
    token = asked(core, **asked_for).tiles
    assert token is not None
    assert (token.rows, token.columns) == (2, 3)
    calibrated(core, 0.5, min_object_share=0.25)
    measured = asked(core, **asked_for).tiles
    assert measured is not None
    assert (measured.rows, measured.columns) == (2, 4)  # up to 200 pixels


def limited(**limits: int) -> RequestContext:
    quota = Quota("key", QuotaLimits(**limits))
    return RequestContext("request-1", "test", context().deadline_s, quota)


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({"requests_per_minute": 1}, InvalidRequest, "its tiles count as 2 requests"),
        ({"megapixels_per_minute": 1}, None, ""),
    ],
)
def test_tiles_count_for_the_key(
    limits: dict[str, int], error: type[ServiceError] | None, message: str
) -> None:
    core = make_core()
    context = limited(**limits)
    if error is not None:
        with pytest.raises(error, match=message):
            run(core.predict(picture(), COUNTED, context))
        return
    run(core.predict(picture(), COUNTED, context))  # 0.32 megapixels, and as many of its tiles
    with pytest.raises(ServiceError, match="per minute"):
        run(core.predict(picture(), COUNTED, context))


def test_tiles_are_refused_together() -> None:
    """Their tokens are counted before any of them waits."""

    async def scenario() -> str:
        decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
        core = make_core(decoders={FLORENCE_ID: decoder}, max_running=1, max_waiting_tokens=600)
        running = asyncio.create_task(core.predict(PNG, {"task": "ocr"}, context()))
        await until(lambda: decoder.num_waiting)
        try:
            with pytest.raises(Overloaded) as caught:
                await core.predict(picture(), COUNTED, context())
        finally:
            running.cancel()
        return caught.value.message

    num_tokens = re.search(r"this request needs (\d+)", run(scenario()))
    assert num_tokens is not None
    assert int(num_tokens[1]) > 3 * (NUM_IMAGE_TOKENS + 256)


def test_failed_tile_ends_the_others() -> None:
    failed = Failed(code="overloaded", message="full")
    core = core_of("", failed, "")
    with pytest.raises(Overloaded) as caught:
        asked(core)
    assert (caught.value.model, caught.value.task) == (FLORENCE_ID, "object_detection")
    assert core.places.num_bytes == 0


async def test_gone_client_ends_all_views() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
    core = make_core(decoders={FLORENCE_ID: decoder})
    asking = asyncio.create_task(core.predict(picture(), COUNTED, context()))
    await until(lambda: decoder.num_waiting == 3)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert (decoder.num_waiting, decoder.num_cancelled, core.places.num_bytes) == (0, 3, 0)


async def test_views_in_flight_are_limited() -> None:
    released = asyncio.Event()
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=released)
    core = make_core(decoders={FLORENCE_ID: decoder}, max_running=2)
    fields = TASK | {"tiles": "2x4"}
    asking = asyncio.create_task(core.predict(picture(), fields, context()))
    await until(lambda: decoder.num_waiting == 2)
    channel = core.clients.runners[FLORENCE_ID].channel
    assert isinstance(channel, FakeChannel)
    assert len([call for call in channel.calls if call.pixels is not None]) == 2
    released.set()
    answer = await asking
    assert answer.tiles is not None
    assert len(answer.written.sequences) == 1 + answer.tiles.asked > 3


SIZE_WH = (200, 100)
HALVES = ((0, 0, 100, 100), (100, 0, 200, 100))
PAPER = Image.new("RGB", SIZE_WH, (250, 248, 246))


def drawn(box: PixelBox, fill: tuple[int, int, int]) -> Image.Image:
    image = PAPER.copy()
    ImageDraw.Draw(image).rectangle(box, fill)
    return image


def flat(image: Image.Image) -> list[bool]:
    async def scenario() -> list[bool]:
        whole = LazyImage(encoded(image), ImageDecoder(ImageLimits(1_000_000), 2), "a")
        await whole.open()
        uneven = await uneven_parts(whole, HALVES)
        return [part not in uneven for part in HALVES]

    return asyncio.run(scenario())


def test_part_without_an_edge_is_flat() -> None:
    assert flat(PAPER) == [True, True]
    for x in range(150, 154):
        thing = (x, 41, x + 7, 48)
        assert flat(drawn(thing, (250, 248, 237))) == [True, False]  # one channel by 9
        assert flat(drawn(thing, (250, 248, 238))) == [True, True]
    shaded = np.zeros((100, 200, 3), dtype=np.uint8)
    shaded += (np.arange(200) // 4).astype(np.uint8)[None, :, None]  # 50 levels over the image
    assert flat(Image.fromarray(shaded)) == [True, True]
    levels = np.random.default_rng(0).normal(128, 1.5, (100, 200, 3))
    assert flat(Image.fromarray(levels.astype(np.uint8))) == [True, True]
    levels[40:48, 150:158] += 11
    assert flat(Image.fromarray(levels.astype(np.uint8))) == [True, False]
