"""Images unlike the labelled ones, by their appearance: what is proved holds for images like them.

An image is a list of simple numbers, as long as every other. Knows no files and no requests.
"""

import io
import math
import random
from collections.abc import Sequence
from operator import attrgetter

import numpy as np
from PIL import Image, ImageStat

from diptych_client.evaluation.annotation.consensus import Records
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


def appearance(records: Records, data: bytes, labels: Sequence[str]) -> list[float]:
    """Return size, mean colour, contrast and sharpness, and of each answer its objects or length.

    Objects have a number, a mean score, a mean size and the number of each label.
    """
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (_SIDE_PX, _SIDE_PX))
        image = opened.convert("RGB")
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    differences = np.diff(grey, axis=0, append=grey[-1:])
    contrast = float(grey.std())
    sharpness = float(np.abs(differences).mean()) / (contrast + 1)
    size = records[0].answer.image
    numbers = [math.log(size.width), math.log(size.height)]
    numbers += [*ImageStat.Stat(image).mean, contrast, sharpness]
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
    return numbers


def differing_images(
    labelled: Sequence[Sequence[float]], others: Sequence[Sequence[float]]
) -> list[int]:
    """Return the others that differ most from the labelled ones; none if they are not told apart.

    The distance to the nearest of one half of the labelled images is compared with the distances of
    the other half: while all are exchangeable, permutations test whether the others' are larger.
    """
    compared = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    half = len(compared) // 2
    if not half or len(others) < MIN_OTHERS:
        return []
    numbers = np.array([*compared, *others])
    scales = numbers.std(axis=0)
    vectors = numbers / np.where(scales > 0, scales, 1)
    nearest = []
    for vector in vectors[half:]:
        nearest.append(np.square(vectors[:half] - vector).sum(axis=1).min())
    distances = np.sqrt(nearest).round(_DECIMALS)
    num_usual = len(compared) - half
    ranks = np.searchsorted(np.sort(distances), distances)
    rng = np.random.default_rng(_SEED)
    permuted = rng.permuted(np.tile(ranks, (_NUM_PERMUTATIONS, 1)), axis=1)
    sums = permuted[:, num_usual:].sum(axis=1)
    num_as_high = int((sums >= ranks[num_usual:].sum()).sum())
    if num_as_high + 1 > LEVEL * (_NUM_PERMUTATIONS + 1):
        return []
    furthest: list[int] = np.argsort(-distances[num_usual:])[:_NUM_EXAMPLES].tolist()
    return furthest
