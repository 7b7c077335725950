"""An image in numbers: its size, what its pixels look like, and what the models answer.

The service gives out no encoder features, so that these are simple statistics: size, brightness,
contrast, sharpness, colours; numbers, sizes and scores of the answered objects, or the length of a
text.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diptych_client.annotate.journal import Record
from diptych_client.evaluation.statistics import Floats
from diptych_client.results import TextResult, box_of, items_of, label_of

_SIDE_PX = 256  # statistics of larger images are of a smaller copy
_HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
_PIXELS = ("brightness", "contrast", "sharpness", "saturation", *(f"share of {h}" for h in _HUES))
_OBJECTS = ("number of objects", "lowest score", "mean score", "highest score", "size of objects")
_MAX_LABELS = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """An image as it is compared with others; `values` are in the order of `names`."""

    name: str
    size_px: float  # the geometric mean of its sides
    values: tuple[float, ...]


def names(records: Sequence[Record], labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the values of an image."""
    found = ["width", "height", *_PIXELS]
    for record in records:
        own = [*_OBJECTS, *(f"number of {label}" for label in labels[:_MAX_LABELS])]
        if isinstance(record.answer.result, TextResult):
            own = ["length of the text"]
        found += [f"{name} of {record.answer.model}" for name in own]
    return tuple(found)


def seen(records: Sequence[Record], data: bytes, labels: Sequence[str]) -> Seen:
    """Return an image, encoded, and the answers to it as numbers."""
    size = records[0].answer.image
    values = [float(size.width), float(size.height), *_pixels(data)]
    for record in records:
        values += _answered(record, labels[:_MAX_LABELS])
    size_px = math.sqrt(size.width * size.height)
    return Seen(records[0].image.name, size_px, tuple(values))


def _answered(record: Record, labels: Sequence[str]) -> list[float]:
    result = record.answer.result
    if isinstance(result, TextResult):
        return [float(len(result.text))]
    items = items_of(result)
    scores = [item.score for item in items] or [0.0]
    sides = [0.0]
    for item in items:
        x1, y1, x2, y2 = box_of(item)
        sides.append(math.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0)))
    found = [label_of(item).casefold() for item in items]
    image_px = math.sqrt(record.answer.image.width * record.answer.image.height)
    size = sum(sides) / max(len(items), 1) / image_px
    counts = [float(found.count(label.casefold())) for label in labels]
    return [float(len(items)), min(scores), sum(scores) / len(scores), max(scores), size, *counts]


def _pixels(data: bytes) -> list[float]:
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (_SIDE_PX, _SIDE_PX))
        image = opened.convert("RGB")
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    grey: Floats = np.asarray(image.convert("L"), dtype=np.float64) / 255
    edges = np.abs(np.diff(grey, axis=0)).mean() if len(grey) > 1 else 0.0
    hue, saturation, _ = np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.float64), 2, 0)
    sector = np.round(hue / 256 * len(_HUES)).astype(int) % len(_HUES)
    shares = np.bincount(sector.ravel(), saturation.ravel() / 255, len(_HUES)) / hue.size
    contrast = float(grey.std())
    sharpness = float(edges) / (contrast + 1 / 255)
    return [float(grey.mean()), contrast, sharpness, float(saturation.mean()) / 255, *shares]
