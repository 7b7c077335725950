"""The pictures of training, validation and evaluation, by seed and difficulty.

Scenes depend only on their seeds, so that a resumed run equals an uninterrupted one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator, default_rng

from export.scenes import sample_scene
from laboratory.things import Material, sample_things
from laboratory.training.data.pictures import Picture
from laboratory.training.data.shape_pictures import shape_picture
from laboratory.training.data.thing_pictures import thing_picture

_EASY_SHARES = (0.05, 0.55, 0.4, 0.0, 0.0)  # scenes with 0 to 4 shapes
_FULL_SHARES = (0.05, 0.15, 0.2, 0.28, 0.32)
_WORD_SHARE = 0.65
_ENCODER_WORD_SHARE = 0.9  # characters take longest to learn
_SHAPE_SHARE = 0.25  # scenes of shapes among those of things
_EASY_THINGS = (0.1, 0.5, 0.4)  # scenes with 0 to 2 things
_FULL_THINGS = (0.08, 0.16, 0.18, 0.15, 0.12, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02, 0.01)
_EASY_LINES = (0.45, 0.45, 0.1)  # scenes with 0 to 2 lines
_FULL_LINES = (0.45, 0.2, 0.12, 0.09, 0.06, 0.04, 0.04)


@dataclass(frozen=True, slots=True)
class Kind:
    """The distribution of a step's pictures: `difficulty` 0 means few objects, 1 mostly many."""

    difficulty: float = 1.0
    is_encoder: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """Pictures, and the range of sizes at which they are rendered for training."""

    picture: Callable[[int, Kind], Picture]
    sizes_px: tuple[int, int]

    def pictures(self, first_seed: int, num: int, kind: Kind) -> list[Picture]:
        """Return the pictures of `num` seeds."""
        return [self.picture(seed, kind) for seed in range(first_seed, first_seed + num)]


def shape_world() -> World:
    """Return the scenes of coloured shapes; larger sizes would differ only in the downscaling."""
    return World(_shapes, (90, 512))


def thing_world(material: Material) -> World:
    """Return the scenes of things and text, among them some of shapes."""
    return World(partial(_things, material), (192, 400))


def _shapes(seed: int, kind: Kind) -> Picture:
    rng = default_rng((seed, 1))
    num = _number(rng, _EASY_SHARES, _FULL_SHARES, kind.difficulty)
    word_share = _ENCODER_WORD_SHARE if kind.is_encoder else _WORD_SHARE
    return shape_picture(sample_scene(seed, num, bool(rng.random() < word_share)))


def _things(material: Material, seed: int, kind: Kind) -> Picture:
    rng = default_rng((seed, 3))
    if rng.random() < _SHAPE_SHARE:
        return _shapes(seed, kind)
    num_things = _number(rng, _EASY_THINGS, _FULL_THINGS, kind.difficulty)
    num_lines = _number(rng, _EASY_LINES, _FULL_LINES, kind.difficulty)
    if kind.is_encoder and not num_lines:
        num_lines = int(rng.integers(3))
    return thing_picture(sample_things(seed, material, num_things, num_lines), material)


def _number(rng: Generator, easy: Sequence[float], full: Sequence[float], difficulty: float) -> int:
    shares = np.array(full) * difficulty
    shares[: len(easy)] += np.array(easy) * (1 - difficulty)
    return int(rng.choice(len(shares), p=shares / shares.sum()))
