"""Images unlike the labelled ones, by their appearance: what is proved holds for images like them.

An image is a list of simple numbers. Knows no files and no requests.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from PIL import Image, ImageStat

from diptych_client.evaluation.annotation.consensus import Records
from diptych_client.matching import Floats
from diptych_client.results import TextResult, box_of, items_of, label_of

LEVEL = 0.03
MIN_OTHERS = 8  # images that can be told apart
_NUM_PERMUTATIONS = 1999
_MAX_LABELLED = 1000
_MAX_LABELS = 16
_SIDE_PX = 512  # pixels are those of a copy of this size
_NUM_EXAMPLES = 5
_DECIMALS = 9  # the order of a sum must not look like a difference
_SEED = 0


@dataclass(frozen=True, slots=True)
class Appearance:
    """An image in numbers, as many as all others have."""

    name: str
    numbers: tuple[float, ...]


def appearance(records: Records, data: bytes, labels: Sequence[str]) -> Appearance:
    """Return size, mean colour, contrast and sharpness, and of each answer its objects or length.

    Objects have a number, a mean score, a mean size and the number of each label.
    """
    size = records[0].answer.image
    numbers = [math.log(size.width), math.log(size.height), *_pixel_numbers(data)]
    for record in records:
        result = record.answer.result
        if isinstance(result, TextResult):
            numbers.append(float(len(result.text)))
            continue
        items = items_of(result)
        names = [label_of(item).casefold() for item in items]
        numbers += [float(names.count(label.casefold())) for label in labels[:_MAX_LABELS]]
        boxes = np.array(list(map(box_of, items)), dtype=np.float64).reshape(-1, 4)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        scores = sum(map(attrgetter("score"), items))
        count = max(len(items), 1)
        numbers += [float(len(items)), scores / count, float(np.sqrt(np.abs(areas)).sum()) / count]
    return Appearance(records[0].image.name, tuple(numbers))


def _pixel_numbers(data: bytes) -> list[float]:
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (_SIDE_PX, _SIDE_PX))
        image = opened.convert("RGB")
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    differences = np.diff(grey, axis=0, append=grey[-1:])
    sharpness = np.abs(differences).mean() / (grey.std() + 1)
    return [*ImageStat.Stat(image).mean, float(grey.std()), float(sharpness)]


def differing_images(labelled: Sequence[Appearance], others: Sequence[Appearance]) -> list[str]:
    """Return the images that differ most from the labelled ones; none if they are not told apart.

    The distance to the nearest of one half of the labelled images is compared with the distances of
    the other half: while all are exchangeable, permutations test whether the others' are larger.
    """
    compared = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    half = len(compared) // 2
    if not half or len(others) < MIN_OTHERS:
        return []
    numbers = np.array(list(map(attrgetter("numbers"), (*compared, *others))))
    scales = numbers.std(axis=0)
    vectors = numbers / np.where(scales > 0, scales, 1)
    distances = _nearest(vectors[half:], vectors[:half])
    num_usual = len(compared) - half
    ranks = np.searchsorted(np.sort(distances), distances)
    rng = np.random.default_rng(_SEED)
    permuted = rng.permuted(np.tile(ranks, (_NUM_PERMUTATIONS, 1)), axis=1)
    sums = permuted[:, num_usual:].sum(axis=1)
    num_as_high = int((sums >= ranks[num_usual:].sum()).sum())
    if num_as_high + 1 > LEVEL * (_NUM_PERMUTATIONS + 1):
        return []
    furthest = np.argsort(-distances[num_usual:])[:_NUM_EXAMPLES]
    return [others[index].name for index in furthest]


def _nearest(vectors: Floats, reference: Floats) -> Floats:
    """Return the distance of each vector to the nearest one of the reference."""
    nearest: Floats = np.empty(len(vectors))
    for index, vector in enumerate(vectors):
        nearest[index] = np.square(reference - vector).sum(axis=1).min()
    return np.sqrt(nearest).round(_DECIMALS)
