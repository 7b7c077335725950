"""An image in numbers, by group: its size, what its pixels look like, and what the models answer.

The service gives out no encoder features, so that these are simple statistics:

    size         width and height
    brightness   mean and deviation of the grey values, share of coloured pixels
    sharpness    how much of the differences over 4 pixels there is between neighbours
    answers      number, lowest, mean and highest score and size of objects, or length of a text
    labels       number of objects of each label
    colours      shares of the coloured pixels
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from diptych_client.annotate.journal import Record
from diptych_client.evaluation.statistics import Floats
from diptych_client.results import TextResult, box_of, items_of, label_of

SIZE = "size"
COLOURS = "colours"
_SIDE_PX = 1024  # statistics of larger images are of a smaller copy
_EDGE_PX = 4
_FLAT = 1e-7  # mean square of differences, of grey values up to 1
_COLOURED = 64  # difference of the largest and the smallest channel, of 255
_LEVELS = 4  # a channel's
_MIN_SHARE = 0.05  # rarer colours are those of edges
_MAX_LABELS = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """An image as it is compared with others; all have the same groups of as many numbers."""

    name: str
    size_px: float  # the geometric mean of its sides
    groups: Mapping[str, tuple[float, ...]]

    def folder(self) -> str:
        return f"folder {PurePosixPath(self.name).parent}"

    def about_size(self) -> str:
        return f"images of about {2 ** round(math.log2(max(self.size_px, 1)))} px"


def seen(records: Sequence[Record], data: bytes, labels: Sequence[str]) -> Seen:
    """Return an image, encoded, and the answers to it as numbers."""
    size = records[0].answer.image
    answers: list[float] = []
    counts: list[float] = []
    for record in records:
        result = record.answer.result
        if isinstance(result, TextResult):
            answers.append(float(len(result.text)))
            continue
        found = [label_of(item).casefold() for item in items_of(result)]
        counts += [float(found.count(label.casefold())) for label in labels[:_MAX_LABELS]]
        answers += _answered(record)
    groups = {SIZE: (float(size.width), float(size.height))} | _pixels(data)
    groups |= {"answers": tuple(answers), "labels": tuple(counts)}
    return Seen(records[0].image.name, math.sqrt(size.width * size.height), groups)


def _answered(record: Record) -> list[float]:
    items = items_of(record.answer.result)
    scores = [item.score for item in items] or [0.0]
    sides = [0.0]
    for item in items:
        x1, y1, x2, y2 = box_of(item)
        sides.append(math.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0)))
    image_px = math.sqrt(record.answer.image.width * record.answer.image.height)
    size = sum(sides) / max(len(items), 1) / image_px
    return [float(len(items)), min(scores), sum(scores) / len(scores), max(scores), size]


def _pixels(data: bytes) -> dict[str, tuple[float, ...]]:
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (_SIDE_PX, _SIDE_PX))
        image = opened.convert("RGB")
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    grey: Floats = np.asarray(image.convert("L"), dtype=np.float64) / 255
    pixels = np.asarray(image).reshape(-1, 3)
    coloured = pixels[np.ptp(pixels, axis=1) > _COLOURED].astype(np.int64)
    places = coloured * _LEVELS // 256 @ [_LEVELS**2, _LEVELS, 1]
    shares = np.bincount(places, minlength=_LEVELS**3) / max(len(coloured), 1)
    shares[shares < _MIN_SHARE] = 0
    return {
        "brightness": (float(grey.mean()), float(grey.std()), len(coloured) / len(pixels)),
        "sharpness": (_energy(grey, 1) / max(_energy(grey, _EDGE_PX), _FLAT),),
        COLOURS: tuple(shares.tolist()),
    }


def _energy(grey: Floats, distance_px: int) -> float:
    """Return the mean square of the differences of pixels in rows and columns."""
    along = grey[:, distance_px:] - grey[:, :-distance_px]
    down = grey[distance_px:] - grey[:-distance_px]
    differences = np.concatenate([along.ravel(), down.ravel()])
    return float(np.square(differences).mean()) if differences.size else 0.0
