"""Other images than the labelled ones: a two-sample test, and the parts that differ.

What labelled images prove holds for images like them. Both kinds of images are compared by their
numbers (appearance.py), by permutations of which images are the labelled ones: while both kinds are
exchangeable, a difference is found with a probability of at most `LEVEL`. The statistics are

    the largest distance of both distributions of each number, in standard deviations (Anderson and
    Darling, 1952, Annals of Mathematical Statistics 23): a few very different images count, too
    the count of labelled images in each group: of one size, and clusters of all images

each in standard deviations over the permutations; their maximum is compared.

Where a difference is found, it is sought in the folders, then the sizes, then the clusters: a part
differs if too few of its images' nearest neighbours are labelled (Schilling, 1986, Journal of the
American Statistical Association 81). If the rest is like the labelled images, only these parts are
left out, else everything. Knows no files and no requests.

Shapes: N images, labelled or not, F numbers, G groups, K neighbours, P labellings, S statistics.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Self

import numpy as np

from diptych_client.annotate.appearance import Seen
from diptych_client.annotate.guarantee import Flags, Indices
from diptych_client.evaluation.statistics import Floats

LEVEL = 0.03
_NUM_PERMUTATIONS = 499
_NUM_CLUSTERS = 8
_NUM_STEPS = 10  # clustering
_NUM_NEIGHBOURS = 5
_MIN_TAIL = 0.03  # share of the images; the distance is weighted between both tails
_MIN_PART = 8  # sampled images of a part that can be told apart
_MAX_DEVIATIONS = 4.0  # a single number must not decide what is near
_NUM_EXAMPLES = 5
_MAX_LABELLED = 1000  # compared; all pairs of images are
_DECIMALS = 9  # the order of a sum must not look like a difference
_SEED = 0

PartOf = Callable[[Seen], str]


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one kind that differ: how many of the sample, and the first ones."""

    name: str
    num_images: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shift:
    """A difference: in which number most, and the parts that have it; no part: everything."""

    most: str
    parts: tuple[Part, ...]
    part_of: PartOf
    examples: tuple[str, ...]

    def sentence(self) -> str:
        """Return the difference in words, and what to do."""
        found = f"images differ from the labelled ones, most in {self.most}"
        if not self.parts:
            shown = ", ".join(self.examples)
            return f"the {found}: nothing is accepted; label some of them, such as {shown}"
        parts = []
        for part in self.parts:
            shown = ", ".join(part.examples)
            parts.append(f"{part.name} ({part.num_images} sampled images, such as {shown})")
        where = "; ".join(parts)
        return f"some {found}: nothing is accepted in {where}; label some of these"

    def has(self, image: Seen) -> bool:
        """Return True if an image is one of the parts that differ."""
        return not self.parts or self.part_of(image) in {part.name for part in self.parts}


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Cells around centres in numbers that are scaled over all images."""

    means: Floats  # (F,)
    scales: Floats  # (F,)
    centres: Floats  # (G, F)

    @classmethod
    def of(cls, values: Floats) -> Self:
        """Return k-means clusters; the first centres are far from each other."""
        scales = values.std(axis=0)
        empty = cls(values.mean(axis=0), np.where(scales > 0, scales, 1.0), values[:0])
        scaled = empty.scaled(values)
        chosen = [int(np.argmin((scaled**2).sum(axis=1)))]
        while len(chosen) < min(_NUM_CLUSTERS, len(values)):
            distances = _squared_distances(scaled, scaled[chosen]).min(axis=1)
            chosen.append(int(np.argmax(distances)))
        centres = scaled[chosen]
        for _ in range(_NUM_STEPS):
            cells = np.argmin(_squared_distances(scaled, centres), axis=1)
            for cell in np.unique(cells).tolist():
                centres[cell] = scaled[cells == cell].mean(axis=0)
        return replace(empty, centres=centres)

    def scaled(self, values: Floats) -> Floats:
        """Return numbers in standard deviations, within bounds."""
        bounds = (-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        scaled: Floats = np.clip((values - self.means) / self.scales, *bounds)
        return scaled

    def nearest(self, scaled: Floats) -> Indices:
        """Return the cell of each image."""
        nearest: Indices = np.argmin(_squared_distances(scaled, self.centres), axis=1)
        return nearest


def find_shift(
    labelled: Sequence[Seen], others: Sequence[Seen], names: Sequence[str]
) -> Shift | None:
    """Return how other images differ from the labelled ones, if they are told apart."""
    chosen = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    images = [*chosen, *others]
    is_labelled = np.arange(len(images)) < len(chosen)
    values = np.array([each.values for each in images], dtype=np.float64)
    clusters = _Clusters.of(values)
    scaled = clusters.scaled(values)
    most = _difference(scaled, is_labelled, _groups(images, clusters.nearest(scaled)), names)
    if most is None:
        return None
    shown = tuple(each.name for each in others[:_NUM_EXAMPLES])

    def cluster_of(image: Seen) -> str:
        (cell,) = clusters.nearest(clusters.scaled(np.array([image.values])))
        return f"cluster {cell + 1}"

    for part_of in (_folder_of, _size_of, cluster_of):
        parts = _differing(images, scaled, is_labelled, part_of)
        left_out = {part.name for part in parts}
        kept = np.array([part_of(each) not in left_out for each in images])
        if part_of is _folder_of:  # labelled images are in other folders
            kept |= is_labelled
        is_enough = (kept & ~is_labelled).sum() >= _MIN_PART and (kept & is_labelled).any()
        if not parts or not is_enough:
            continue
        rest = [image for image, is_kept in zip(images, kept, strict=True) if is_kept]
        groups = _groups(rest, clusters.nearest(scaled[kept]))
        if _difference(scaled[kept], is_labelled[kept], groups, names) is None:
            return Shift(most, parts, part_of, shown)
    return Shift(most, (), _folder_of, shown)


def _folder_of(image: Seen) -> str:
    return f"folder {PurePosixPath(image.name).parent}"


def _size_of(image: Seen) -> str:
    return f"images of about {2 ** round(math.log2(max(image.size_px, 1)))} px"


def _groups(images: Sequence[Seen], cells: Indices) -> Floats:
    """Return which images are of which size and cluster, (N, G)."""
    _, sizes = np.unique([_size_of(each) for each in images], return_inverse=True)
    columns = [sizes == size for size in range(sizes.max() + 1)]
    columns += [cells == cell for cell in range(_NUM_CLUSTERS)]
    return np.stack(columns, axis=1).astype(np.float64)


def _difference(
    values: Floats, is_labelled: Flags, groups: Floats, names: Sequence[str]
) -> str | None:
    """Return the name of the number that differs most, or None at the level of the test."""
    order = np.argsort(values, axis=0, kind="stable")
    ascending = np.take_along_axis(values, order, axis=0)
    is_last = np.ones(values.shape, dtype=bool)  # the last one of equal values
    is_last[:-1] = ascending[1:] != ascending[:-1]
    shares = np.clip(np.arange(1, len(values) + 1) / len(values), _MIN_TAIL, 1 - _MIN_TAIL)
    weights = is_last / np.sqrt(shares * (1 - shares))[:, None]

    labels = _labellings(is_labelled)
    num_labelled = is_labelled.sum()
    steps = labels / num_labelled - (1 - labels) / (len(values) - num_labelled)
    columns = [-labels @ groups]
    for number in range(values.shape[1]):
        distances = np.abs(np.cumsum(steps[:, order[:, number]], axis=1))
        columns.append((distances * weights[:, number]).max(axis=1, keepdims=True))
    deviations = _deviations(np.concatenate(columns, axis=1))
    highest = deviations.max(axis=1)
    if (highest >= highest[0]).mean() > LEVEL:
        return None
    most = int(np.argmax(deviations[0])) - groups.shape[1]
    return names[most] if most >= 0 else "a group of images with few labelled ones"


def _differing(
    images: Sequence[Seen], scaled: Floats, is_labelled: Flags, part_of: PartOf
) -> tuple[Part, ...]:
    """Return the parts of the other images that have too few labelled neighbours."""
    distances = _squared_distances(scaled, scaled)
    np.fill_diagonal(distances, np.inf)
    neighbours = np.argsort(distances, axis=1)[:, :_NUM_NEIGHBOURS]
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(~is_labelled).tolist():
        members.setdefault(part_of(images[index]), []).append(index)
    large = {name: own for name, own in members.items() if len(own) >= _MIN_PART}
    if not large:
        return ()

    shares = _labellings(is_labelled)[:, neighbours].mean(axis=2)  # (P, N)
    deviations = _deviations(np.stack([-shares[:, own].mean(axis=1) for own in large.values()], 1))
    p_values = (deviations >= deviations[0]).mean(axis=0)
    found = []
    for (name, own), p_value in zip(large.items(), p_values.tolist(), strict=True):
        if p_value <= LEVEL / len(large):
            examples = tuple(images[index].name for index in own[:_NUM_EXAMPLES])
            found.append(Part(name, len(own), examples))
    return tuple(found)


def _labellings(is_labelled: Flags) -> Floats:
    """Return which images are labelled, as observed and permuted, (P, N)."""
    rng = np.random.default_rng(_SEED)
    rows = [is_labelled]
    rows += [rng.permutation(is_labelled) for _ in range(_NUM_PERMUTATIONS)]
    return np.stack(rows).astype(np.float64)


def _deviations(statistics: Floats) -> Floats:
    """Return each statistic of (P, S) in standard deviations over the permutations."""
    table = np.round(statistics, _DECIMALS)
    scales = table.std(axis=0)
    deviations: Floats = (table - table.mean(axis=0)) / np.where(scales > 0, scales, 1.0)
    return deviations


def _squared_distances(rows: Floats, others: Floats) -> Floats:
    """Return the squared distances of all pairs; rounding never makes one negative."""
    products = rows @ others.T
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    distances: Floats = np.maximum(squares - 2 * products, 0)
    return distances
