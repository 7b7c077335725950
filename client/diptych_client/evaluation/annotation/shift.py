"""Images unlike the labelled ones: a two-sample test, and the parts that differ.

What labelled images prove holds for images like them. The service gives out no encoder features:
images are compared by simple numbers, in groups (`Appearance`). Permutations of which images are
the labelled ones test them: while both kinds are exchangeable, a difference is found with a
probability of at most `LEVEL`.

A part of the other images is all of them, a folder, those of one size, or a cluster by one group of
numbers. Statistics are

    of all and of a folder   the share of labelled images among the nearest neighbours of its images
                             (Schilling, 1986, Journal of the American Statistical Association 81),
                             in each group of numbers; by colour, images with a rare colour in
                             common are near. Folders may differ from each other, as long as
                             labelled images are among their neighbours.
    of a size or a cluster   the share of labelled images in it

each in standard deviations over the permutations. Their maximum is compared: one test for all of
them (Westfall and Young, 1993, Resampling-Based Multiple Testing).

Parts that differ are left out, the folders before the sizes and clusters, if the rest is like the
labelled images; else everything is. Knows no files and no requests.

Shapes: N images, labelled or not, M of a part, F numbers, C colours, P labellings, S statistics.
"""

import io
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych_client.evaluation.annotation.consensus import Records
from diptych_client.evaluation.job import Record
from diptych_client.evaluation.objects import Flags
from diptych_client.matching import Floats
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

LEVEL = 0.03
_NUM_PERMUTATIONS = 499
_NUM_CLUSTERS = 4  # a group of numbers has
_NUM_STEPS = 10  # clustering
_MAX_NEIGHBOURS = 50
_MIN_PART = 8  # sampled images of a part that can be told apart
_MAX_DEVIATIONS = 4.0  # a single number must not decide what is near
_NUM_EXAMPLES = 5
_MAX_LABELLED = 1000  # compared; all pairs of images are
_DECIMALS = 9  # the order of a sum must not look like a difference
_SEED = 0
_REGION_WEIGHT = 0.85  # there are many regions: the level is mostly for folders


@dataclass(frozen=True, slots=True)
class Appearance:
    """An image in numbers; all have the same groups of as many numbers.

    size         width and height
    brightness   mean and deviation of the grey values, share of coloured pixels
    sharpness    how much of the differences over 4 pixels there is between neighbours
    answers      number, lowest, mean and highest score and size of objects, or length of a text
    labels       number of objects of each label
    colours      shares of the coloured pixels
    """

    name: str
    size_px: float  # the geometric mean of its sides
    groups: Mapping[str, tuple[float, ...]]

    def folder(self) -> str:
        return f"folder {PurePosixPath(self.name).parent}"

    def about_size(self) -> str:
        return f"images of about {2 ** round(math.log2(max(self.size_px, 1)))} px"


PartOf = Callable[[Appearance], str]
Indices = NDArray[np.int64]


def appearance(records: Records, data: bytes, labels: Sequence[str]) -> Appearance:
    size = records[0].answer.image
    answers: list[float] = []
    counts: list[float] = []
    for record in records:
        result = record.answer.result
        if isinstance(result, TextResult):
            answers.append(float(len(result.text)))
            continue
        names = [label_of(item).casefold() for item in items_of(result)]
        counts += [float(names.count(label.casefold())) for label in labels[:_MAX_LABELS]]
        answers += _answer_numbers(record)
    groups = {SIZE: (float(size.width), float(size.height))} | _pixel_groups(data)
    groups |= {"answers": tuple(answers), "labels": tuple(counts)}
    return Appearance(records[0].image.name, math.sqrt(size.width * size.height), groups)


def _answer_numbers(record: Record) -> list[float]:
    items = items_of(record.answer.result)
    scores = [item.score for item in items] or [0.0]
    sides = [0.0]
    for item in items:
        x1, y1, x2, y2 = box_of(item)
        sides.append(math.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0)))
    image_px = math.sqrt(record.answer.image.width * record.answer.image.height)
    size = sum(sides) / max(len(items), 1) / image_px
    return [float(len(items)), min(scores), sum(scores) / len(scores), max(scores), size]


def _pixel_groups(data: bytes) -> dict[str, tuple[float, ...]]:
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


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one kind that differ: how many of the sample, and the first ones."""

    name: str
    num_images: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shift:
    """A difference: the group that differs most, and the parts that have it; no part: all."""

    most: str
    parts: tuple[Part, ...]
    part_of: PartOf
    examples: tuple[str, ...]

    def sentence(self) -> str:
        """Return the difference, and what to label, in words."""
        difference = f"images differ from the labelled ones, most in {self.most}"
        if not self.parts:
            names = ", ".join(self.examples)
            return f"the {difference}: nothing is accepted; label some of them, such as {names}"
        parts = []
        for part in self.parts:
            names = ", ".join(part.examples)
            parts.append(f"{part.name} ({part.num_images} sampled images, such as {names})")
        places = "; ".join(parts)
        return f"some {difference}: nothing is accepted in {places}; label some of these"

    def has(self, image: Appearance) -> bool:
        """Return True if an image is one of the parts that differ."""
        return not self.parts or self.part_of(image) in {part.name for part in self.parts}


def find_shift(labelled: Sequence[Appearance], others: Sequence[Appearance]) -> Shift | None:
    """Return how other images differ from the labelled ones, if they are told apart."""
    compared = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    images = [*compared, *others]
    scale = _Scale.of(images)
    vectors = scale.vectors(images)
    # kinds of parts, and whether they are regions, which have labelled images, too
    kinds: dict[PartOf, bool] = {_any_part: False, Appearance.folder: False}
    kinds[Appearance.about_size] = True
    for group, column in scale.columns.items():
        if group not in (SIZE, COLOURS) and vectors[:, column].std(axis=0).any():
            kinds[partial(scale.cluster, group, _k_means(vectors[:, column]))] = True
    is_labelled = np.arange(len(images)) < len(compared)
    parts = [np.array(list(map(part_of, images))) for part_of in kinds]
    pool = _Pool(vectors, scale.columns, is_labelled, parts, list(kinds.values()))
    differences = pool.differences()
    if not differences:
        return None
    most = differences[0].group
    examples = tuple(image.name for image in others[:_NUM_EXAMPLES])
    for kind, part_of in enumerate(kinds):
        names = pool.differing_parts(kind, differences)
        if not names:
            continue
        rest = pool.without(kind, names)
        is_enough = (~rest.is_labelled).sum() >= _MIN_PART and rest.is_labelled.any()
        if is_enough and not rest.differences():
            left_out = []
            for name in names:
                members = [images[index].name for index in pool.members(kind, name).tolist()]
                left_out.append(Part(name, len(members), tuple(members[:_NUM_EXAMPLES])))
            return Shift(most, tuple(left_out), part_of, examples)
    return Shift(most, (), _any_part, examples)


def _any_part(_image: Appearance) -> str:
    return "all images"


@dataclass(frozen=True, slots=True)
class _Scale:
    """Scales numbers over all images; `columns` are the places of a group."""

    means: Floats  # (F,)
    deviations: Floats  # (F,)
    columns: Mapping[str, slice]

    @classmethod
    def of(cls, images: Sequence[Appearance]) -> Self:
        columns = {}
        end = 0
        for group, numbers in images[0].groups.items():
            columns[group] = slice(end, end + len(numbers))
            end += len(numbers)
        values = _values(images)
        means = values.mean(axis=0)
        deviations = values.std(axis=0)
        deviations[deviations == 0] = 1
        if COLOURS in columns:  # shares stay shares
            means[columns[COLOURS]] = 0
            deviations[columns[COLOURS]] = 1
        return cls(means, deviations, columns)

    def vectors(self, images: Sequence[Appearance]) -> Floats:
        scaled = (_values(images) - self.means) / self.deviations
        return np.clip(scaled, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)

    def cluster(self, group: str, centres: Floats, image: Appearance) -> str:
        vector = self.vectors([image])[:, self.columns[group]]
        return f"cluster {_nearest(vector, centres)[0] + 1} by {group}"


def _values(images: Sequence[Appearance]) -> Floats:
    return np.array([list(chain.from_iterable(image.groups.values())) for image in images])


def _k_means(vectors: Floats) -> Floats:
    """Return the centres of k-means clusters; the first ones are far from each other."""
    indices = [int(np.argmin((vectors**2).sum(axis=1)))]
    while len(indices) < min(_NUM_CLUSTERS, len(vectors)):
        distances = _squared_distances(vectors, vectors[indices]).min(axis=1)
        indices.append(int(np.argmax(distances)))
    centres = vectors[indices]
    for _ in range(_NUM_STEPS):
        cells = _nearest(vectors, centres)
        for cell in np.unique(cells).tolist():
            centres[cell] = vectors[cells == cell].mean(axis=0)
    return centres


def _nearest(vectors: Floats, centres: Floats) -> Indices:
    cells: Indices = np.argmin(_squared_distances(vectors, centres), axis=1)
    return cells


@dataclass(frozen=True, slots=True)
class _Difference:
    """A group of numbers, or the region itself, in which a part of a kind differs."""

    kind: int
    part: str
    group: str


@dataclass(frozen=True, slots=True)
class _Pool:
    """Compared images: their vectors, which are labelled, and their parts, of each kind."""

    vectors: Floats  # (N, F)
    columns: Mapping[str, slice]
    is_labelled: Flags  # (N,)
    parts: Sequence[NDArray[np.str_]]  # (N,) of each kind
    are_regions: Sequence[bool]  # one for each kind

    def members(self, kind: int, part: str) -> Indices:
        return np.flatnonzero((self.parts[kind] == part) & ~self.is_labelled)

    def differing_parts(self, kind: int, differences: Sequence[_Difference]) -> list[str]:
        """Return the parts of a kind that differ, and regions too small to be tested."""
        names = dict.fromkeys(entry.part for entry in differences if entry.kind == kind)
        if names and self.are_regions[kind]:
            parts = self.parts[kind]
            names |= dict.fromkeys(np.setdiff1d(parts, parts[self.is_labelled]).tolist())
        return list(names)

    def without(self, kind: int, names: Sequence[str]) -> "_Pool":
        """Return the pool without parts; labelled images are not part of a folder."""
        remains = ~np.isin(self.parts[kind], names)
        if not self.are_regions[kind]:
            remains |= self.is_labelled
        parts = [of_kind[remains] for of_kind in self.parts]
        vectors = self.vectors[remains]
        return _Pool(vectors, self.columns, self.is_labelled[remains], parts, self.are_regions)

    def differences(self) -> list[_Difference]:
        """Return the differences at the level of the test, the largest first."""
        statistics = list(self._statistics())
        if not statistics:
            return []
        rng = np.random.default_rng(_SEED)
        labellings = [self.is_labelled]
        labellings += [rng.permutation(self.is_labelled) for _ in range(_NUM_PERMUTATIONS)]
        weights = np.stack([weights for _, weights in statistics], axis=1)  # (N, S)
        sums = np.stack(labellings).astype(np.float64) @ weights
        shares = np.round(sums, _DECIMALS)  # (P, S), as observed first
        scales = shares.std(axis=0)
        deviations = (shares.mean(axis=0) - shares) / np.where(scales > 0, scales, 1.0)
        for index, (tested, _) in enumerate(statistics):
            if self.are_regions[tested.kind]:
                deviations[:, index] *= _REGION_WEIGHT
        highest = deviations.max(axis=1)
        differences = []
        for index in np.argsort(-deviations[0]).tolist():
            if (highest >= deviations[0, index]).mean() <= LEVEL:
                differences.append(statistics[index][0])
        return differences

    def _statistics(self) -> Iterator[tuple[_Difference, Floats]]:
        """Yield what is tested with the weight of each image, (N,): the same images once."""
        known = set[bytes]()
        for kind, parts in enumerate(self.parts):
            for part in np.unique(parts[~self.is_labelled]).tolist():
                members = self.members(kind, part)
                if len(members) < _MIN_PART or members.tobytes() in known:
                    continue
                known.add(members.tobytes())
                if self.are_regions[kind]:
                    yield _Difference(kind, part, part), (parts == part) / (parts == part).sum()
                    continue
                for group, column in self.columns.items():
                    numbers = self.vectors[:, column]
                    if group == COLOURS:
                        near = _near_by_colour(numbers, members)
                    elif numbers.std(axis=0).any():
                        near = _near_by_distance(numbers, members)
                    else:
                        continue
                    yield _Difference(kind, part, group), near.mean(axis=0)


def _near_by_distance(vectors: Floats, members: Indices) -> Floats:
    """Weight the nearest images, as many as are in the part, equally, (M, N)."""
    distances = _squared_distances(vectors[members], vectors)
    distances[np.arange(len(members)), members] = np.inf
    count = min(len(members) - 1, _MAX_NEIGHBOURS)
    furthest = np.partition(distances, count - 1, axis=1)[:, count - 1 : count]
    is_near = np.round(distances - furthest, _DECIMALS) <= 0  # also equally distant ones
    near: Floats = is_near / is_near.sum(axis=1, keepdims=True)
    return near


def _near_by_colour(shares: Floats, members: Indices) -> Floats:
    """Weight the images with the same colours by their part of all other images' pixels, (M, N)."""
    rest = shares.sum(axis=0) - shares[members]
    is_seen = rest > 0.1**_DECIMALS
    common = np.divide(shares[members], rest, out=np.zeros_like(rest), where=is_seen)
    weights = common @ shares.T
    weights[np.arange(len(members)), members] = 0
    sums = weights.sum(axis=1, keepdims=True)
    near: Floats = weights / np.where(sums > 0, sums, 1.0)
    return near


def _squared_distances(rows: Floats, others: Floats) -> Floats:
    """Return the squared distances of all pairs; rounding never makes one negative."""
    products = rows @ others.T
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    distances: Floats = np.maximum(squares - 2 * products, 0)
    return distances
