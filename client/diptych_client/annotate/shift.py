"""Other images than the labelled ones: a two-sample test, and the parts that differ.

What labelled images prove holds for images like them. Both kinds of images are compared by their
numbers (appearance.py), by permutations of which images are the labelled ones: while both kinds are
exchangeable, a difference is found with a probability of at most `LEVEL`.

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

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from diptych_client.annotate.appearance import COLOURS, SIZE, Seen
from diptych_client.annotate.guarantee import Flags, Indices
from diptych_client.evaluation.statistics import Floats

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
_FIRST_REGION = 2  # kinds of parts before it are of the other images alone

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
class _Space:
    """Scales numbers over all images; cells around centres divide each group that varies."""

    means: Floats  # (F,)
    scales: Floats  # (F,)
    columns: Mapping[str, slice]  # places of a group
    centres: Mapping[str, Floats]  # (cells, F of the group)

    @classmethod
    def of(cls, images: Sequence[Seen]) -> Self:
        columns = {}
        end = 0
        for group, numbers in images[0].groups.items():
            columns[group] = slice(end, end + len(numbers))
            end += len(numbers)
        values = _values(images)
        means = values.mean(axis=0)
        scales = values.std(axis=0)
        scales[scales == 0] = 1
        if COLOURS in columns:  # shares stay shares
            means[columns[COLOURS]] = 0
            scales[columns[COLOURS]] = 1
        space = cls(means, scales, columns, {})
        vectors = space.vectors(images)
        centres = {}
        for group, column in columns.items():
            if group not in (SIZE, COLOURS) and vectors[:, column].std(axis=0).any():
                centres[group] = k_means(vectors[:, column])
        return replace(space, centres=centres)

    def vectors(self, images: Sequence[Seen]) -> Floats:
        scaled = (_values(images) - self.means) / self.scales
        return np.clip(scaled, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)

    def cluster_of(self, group: str, image: Seen) -> str:
        vector = self.vectors([image])[:, self.columns[group]]
        return f"cluster {_nearest(vector, self.centres[group])[0] + 1} by {group}"


def k_means(vectors: Floats) -> Floats:
    """Return the centres of k-means clusters; the first ones are far from each other."""
    chosen = [int(np.argmin((vectors**2).sum(axis=1)))]
    while len(chosen) < min(_NUM_CLUSTERS, len(vectors)):
        distances = _squared_distances(vectors, vectors[chosen]).min(axis=1)
        chosen.append(int(np.argmax(distances)))
    centres = vectors[chosen]
    for _ in range(_NUM_STEPS):
        cells = _nearest(vectors, centres)
        for cell in np.unique(cells).tolist():
            centres[cell] = vectors[cells == cell].mean(axis=0)
    return centres


def _nearest(vectors: Floats, centres: Floats) -> Indices:
    cells: Indices = np.argmin(_squared_distances(vectors, centres), axis=1)
    return cells


def _values(images: Sequence[Seen]) -> Floats:
    return np.array([list(chain.from_iterable(each.groups.values())) for each in images])


@dataclass(frozen=True, slots=True)
class _Pool:
    """Compared images: their vectors, which are labelled, and their parts, of each kind."""

    vectors: Floats  # (N, F)
    is_labelled: Flags  # (N,)
    parts: tuple[NDArray[np.str_], ...]  # (N,) each

    def kept(self, is_kept: Flags) -> "_Pool":
        parts = tuple(each[is_kept] for each in self.parts)
        return _Pool(self.vectors[is_kept], self.is_labelled[is_kept], parts)

    def members(self, kind: int, part: str) -> Indices:
        """Return the other images of a part."""
        return np.flatnonzero((self.parts[kind] == part) & ~self.is_labelled)

    def large_parts(self) -> Iterator[tuple[int, str, Indices]]:
        """Yield kind, name and images of each part; the same images once."""
        known = set()
        for kind, parts in enumerate(self.parts):
            for part in np.unique(parts[~self.is_labelled]).tolist():
                own = self.members(kind, part)
                if len(own) >= _MIN_PART and own.tobytes() not in known:
                    known.add(own.tobytes())
                    yield kind, part, own


@dataclass(frozen=True, slots=True)
class _Difference:
    """A group of numbers, or the region itself, in which a part of a kind differs."""

    kind: int
    part: str
    group: str


def find_shift(labelled: Sequence[Seen], others: Sequence[Seen]) -> Shift | None:
    """Return how other images differ from the labelled ones, if they are told apart."""
    chosen = random.Random(_SEED).sample(labelled, min(len(labelled), _MAX_LABELLED))
    images = [*chosen, *others]
    is_labelled = np.arange(len(images)) < len(chosen)
    space = _Space.of(images)
    clusters = [partial(space.cluster_of, group) for group in space.centres]
    kinds: tuple[PartOf, ...] = (_any_part, Seen.folder, Seen.about_size, *clusters)
    parts = tuple(np.array(list(map(part_of, images))) for part_of in kinds)
    pool = _Pool(space.vectors(images), is_labelled, parts)
    found = _differences(pool, space.columns)
    if not found:
        return None
    most = found[0].group
    for kind, part_of in enumerate(kinds):
        names = list(dict.fromkeys(each.part for each in found if each.kind == kind))
        if names and kind >= _FIRST_REGION:  # too small ones without a labelled image, too
            unlabelled = np.setdiff1d(parts[kind], parts[kind][is_labelled]).tolist()
            names += [name for name in unlabelled if name not in names]
        is_kept = ~np.isin(parts[kind], names)
        if kind < _FIRST_REGION:
            is_kept |= is_labelled
        rest = pool.kept(is_kept)
        is_enough = (~rest.is_labelled).sum() >= _MIN_PART and rest.is_labelled.any()
        if names and is_enough and not _differences(rest, space.columns):
            left_out = []
            for name in names:
                own = pool.members(kind, name).tolist()
                examples = tuple(images[index].name for index in own[:_NUM_EXAMPLES])
                left_out.append(Part(name, len(own), examples))
            return Shift(most, tuple(left_out), part_of, examples)
    return Shift(most, (), _any_part, tuple(each.name for each in others[:_NUM_EXAMPLES]))


def _any_part(_image: Seen) -> str:
    return "all images"


def _differences(pool: _Pool, columns: Mapping[str, slice]) -> list[_Difference]:
    """Return the differences at the level of the test, the largest first."""
    tested = []
    weights = []
    for kind, part, own in pool.large_parts():
        if kind >= _FIRST_REGION:
            is_in = pool.parts[kind] == part
            tested.append(_Difference(kind, part, part))
            weights.append(is_in / is_in.sum())
            continue
        for group, near in _neighbours(pool.vectors, own, columns):
            tested.append(_Difference(kind, part, group))
            weights.append(near.mean(axis=0))
    if not tested:
        return []
    rng = np.random.default_rng(_SEED)
    labellings = [pool.is_labelled]
    labellings += [rng.permutation(pool.is_labelled) for _ in range(_NUM_PERMUTATIONS)]
    sums = np.stack(labellings).astype(np.float64) @ np.stack(weights, axis=1)
    shares = np.round(sums, _DECIMALS)  # (P, S), as observed first
    scales = shares.std(axis=0)
    deviations = (shares.mean(axis=0) - shares) / np.where(scales > 0, scales, 1.0)
    deviations *= [1.0 if each.kind < _FIRST_REGION else _REGION_WEIGHT for each in tested]
    highest = deviations.max(axis=1)
    found = []
    for index in np.argsort(-deviations[0]).tolist():
        if (highest >= deviations[0, index]).mean() <= LEVEL:
            found.append(tested[index])
    return found


def _neighbours(
    vectors: Floats, own: Indices, columns: Mapping[str, slice]
) -> Iterator[tuple[str, Floats]]:
    """Yield each group with the weights of all images as neighbours of some, (M, N)."""
    for group, column in columns.items():
        numbers = vectors[:, column]
        if group == COLOURS:
            yield group, near_by_colour(numbers, own)
        elif numbers.std(axis=0).any():
            yield group, near_by_distance(numbers, own)


def near_by_distance(vectors: Floats, own: Indices) -> Floats:
    """Weight the nearest images, as many as are in the part, equally."""
    distances = _squared_distances(vectors[own], vectors)
    distances[np.arange(len(own)), own] = np.inf
    count = min(len(own) - 1, _MAX_NEIGHBOURS)
    furthest = np.partition(distances, count - 1, axis=1)[:, count - 1 : count]
    is_near = np.round(distances - furthest, _DECIMALS) <= 0  # all of those as near
    near: Floats = is_near / is_near.sum(axis=1, keepdims=True)
    return near


def near_by_colour(shares: Floats, own: Indices) -> Floats:
    """Weight the images with the same colours, each by its part of all other images' pixels."""
    rest = shares.sum(axis=0) - shares[own]
    common = np.divide(shares[own], rest, out=np.zeros_like(rest), where=rest > 0.1**_DECIMALS)
    weights = common @ shares.T
    weights[np.arange(len(own)), own] = 0
    sums = weights.sum(axis=1, keepdims=True)
    near: Floats = weights / np.where(sums > 0, sums, 1.0)
    return near


def _squared_distances(rows: Floats, others: Floats) -> Floats:
    """Return the squared distances of all pairs; rounding never makes one negative."""
    products = rows @ others.T
    squares = (rows**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    distances: Floats = np.maximum(squares - 2 * products, 0)
    return distances
