"""Handmade answers of the client."""

from diptych_client import (
    Answer,
    Detection,
    DetectionsResult,
    ImageSize,
    Instance,
    InstancesResult,
    RunLengthMask,
    TextRegion,
    TextRegionsResult,
    TextResult,
    Timings,
    Usage,
)
from diptych_client.datasets.inputs import ImageFile
from diptych_client.datasets.records import Record
from diptych_client.results import Result

SIZE = ImageSize(width=40, height=20)
SQUARE = ((2.0, 2.0), (12.0, 2.0), (12.0, 12.0), (2.0, 12.0))
HOLE = ((4.0, 4.0), (8.0, 4.0), (8.0, 8.0), (4.0, 8.0))
FAR_SQUARE = ((20.0, 5.0), (30.0, 5.0), (30.0, 15.0), (20.0, 15.0))

TEXT = TextResult("zwei Kreise, größer — 二つの円")
DETECTIONS = DetectionsResult(
    (
        Detection((1.0, 2.0, 11.0, 12.0), "star", 0.9),
        Detection((20.0, 4.0, 30.0, 14.0), "circle", 0.5),
        Detection((30.0, 4.0, 36.0, 10.0), "star", 0.25),
    )
)
INSTANCES = InstancesResult(
    (
        Instance((2.0, 2.0, 12.0, 12.0), "ring", 0.75, (SQUARE, HOLE)),
        Instance((2.0, 2.0, 30.0, 15.0), "pair", 0.5, (SQUARE, FAR_SQUARE)),
    )
)
MASKS = InstancesResult(
    (Instance((0.0, 0.0, 4.0, 2.0), "all", 1.0, mask=RunLengthMask((2, 4), "08")),)
)
TEXT_REGIONS = TextRegionsResult(
    (TextRegion(((5.0, 5.0), (15.0, 6.0), (14.0, 10.0), (4.0, 9.0)), "HI", 0.8),)
)
RESULTS: tuple[Result, ...] = (
    TEXT,
    DETECTIONS,
    INSTANCES,
    MASKS,
    TEXT_REGIONS,
    DetectionsResult(()),
)


def answer(
    result: Result, image: ImageSize = SIZE, task: str = "some_task", model: str = "some-model"
) -> Answer:
    timings = Timings(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 21.0)
    return Answer(
        "id-1", model, task, result, "raw", "stop", image, Usage(3, 2, 1, 1), "miss", timings
    )


def record(result: Result, name: str = "a.png", image: ImageSize = SIZE) -> Record:
    return Record(ImageFile(name, 100, 1), answer(result, image))
