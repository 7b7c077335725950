"""Images unlike the labelled ones, by their appearance: what is proved holds for images like them.

An image is a list of simple numbers. Its distance to the nearest of one half of the labelled images
is compared with the distances of the other half: while all images are exchangeable, permutations
test whether those of a part are larger. Parts are the folders with enough sampled images, and all
others together; all tests have `LEVEL` together, by Bonferroni. Knows no files and no requests.

Shapes: N images of a part, L labelled images.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image, ImageStat

from diptych_client.evaluation.annotation.consensus import Records
from diptych_client.matching import Floats
from diptych_client.results import TextResult, box_of, items_of, label_of

LEVEL = 0.03
_NUM_PERMUTATIONS = 1999
_MIN_PART = 8  # sampled images of a part that can be told apart
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
        scores = sum(item.score for item in items)
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


@dataclass(frozen=True, slots=True)
class Shift:
    """The folders that differ, none if all images do; the images that differ most."""

    folders: tuple[str, ...]
    examples: tuple[str, ...]

    def sentence(self) -> str:
        """Return what differs, and what to label, in words."""
        place = f" in {', '.join(self.folders)}" if self.folders else ""
        names = ", ".join(self.examples)
        return (
            f"images{place} differ from the labelled ones: none of their labels is accepted;"
            f" label some of them, such as {names}"
        )

    def has(self, name: str) -> bool:
        """Return True if the image is one of those that differ."""
        return not self.folders or _folder(name) in self.folders


def _folder(name: str) -> str:
    return str(PurePosixPath(name).parent)


def find_shift(labelled: Sequence[Appearance], others: Sequence[Appearance]) -> Shift | None:
    """Return how other images differ from the labelled ones, if they are told apart."""
    compared = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    half = len(compared) // 2
    if not half or not others:
        return None
    numbers = np.array([image.numbers for image in (*compared, *others)])
    scales = numbers.std(axis=0)
    vectors = numbers / np.where(scales > 0, scales, 1)
    distances = _nearest(vectors[half:], vectors[:half])
    usual, distances = np.split(distances, [len(compared) - half])
    folders = np.array([_folder(image.name) for image in others])
    names, counts = np.unique(folders, return_counts=True)
    tested = names[counts >= _MIN_PART].tolist()
    level = LEVEL / (len(tested) + 1)
    unlike = []
    for folder in tested:
        if _p_value(distances[folders == folder], usual) <= level:
            unlike.append(folder)
    is_unlike = np.isin(folders, unlike)
    if is_unlike.all() or _p_value(distances[~is_unlike], usual) <= level:
        unlike = []
        is_unlike[:] = True
    if not is_unlike.any():
        return None
    furthest = np.argsort(-np.where(is_unlike, distances, -1))[:_NUM_EXAMPLES]
    return Shift(tuple(unlike), tuple(others[index].name for index in furthest))


def _nearest(vectors: Floats, reference: Floats) -> Floats:
    """Return the distance of each vector to the nearest one of the reference."""
    nearest: Floats = np.empty(len(vectors))
    for index, vector in enumerate(vectors):
        nearest[index] = np.square(reference - vector).sum(axis=1).min()
    return np.sqrt(nearest).round(_DECIMALS)


def _p_value(distances: Floats, usual: Floats) -> float:
    """Return the share of permutations in which the ranks of the part, (N,), are as high."""
    if len(distances) < _MIN_PART:
        return 1.0
    pooled = np.concatenate([distances, usual])
    ranks = np.searchsorted(np.sort(pooled), pooled)
    rng = np.random.default_rng(_SEED)
    permuted = rng.permuted(np.tile(ranks, (_NUM_PERMUTATIONS, 1)), axis=1)
    sums = permuted[:, : len(distances)].sum(axis=1)
    num_as_high = (sums >= ranks[: len(distances)].sum()).sum()
    return float(num_as_high + 1) / (_NUM_PERMUTATIONS + 1)
