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

_SIDE_PX = 1024  # statistics of larger images are of a smaller copy
_EDGE_PX = 4  # a sharp edge is as steep over one pixel
_STEEPEST = 0.998
_COLOURED = 128  # saturation of 255
_HUES = (
    "red",
    "orange",
    "yellow",
    "lime",
    "green",
    "turquoise",
    "cyan",
    "azure",
    "blue",
    "violet",
    "magenta",
    "pink",
)
_PIXELS = ("brightness", "contrast", "sharpness", "colour", *(f"share of {h}" for h in _HUES))
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
    sharpness = _steepest(grey, 1) / max(_steepest(grey, _EDGE_PX), 1 / 255)
    hue, saturation, _ = np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.float64), 2, 0)
    coloured = hue[saturation > _COLOURED]
    sector = np.round(coloured / 256 * len(_HUES)).astype(int) % len(_HUES)
    shares = np.bincount(sector, minlength=len(_HUES)) / max(len(coloured), 1)
    share = len(coloured) / hue.size
    return [float(grey.mean()), float(grey.std()), sharpness, share, *shares.tolist()]


def _steepest(grey: Floats, distance_px: int) -> float:
    """Return a high quantile of the differences of pixels in a row."""
    differences = np.abs(grey[:, distance_px:] - grey[:, :-distance_px])
    return float(np.quantile(differences, _STEEPEST)) if differences.size else 0.0
