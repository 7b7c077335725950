"""Scenes of one training step as tensors.

Shapes: B images, Q sequences, S prompt (padded), T answer (padded), N cells. The seeds of a step's scenes follow from
its number, so that a run goes on after a stop as if it had not stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.random import Generator, default_rng
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from export.scenes import Scene, sample_scene
from export.training.cell_targets import CellTargets, cell_targets
from export.training.examples import Example, Language, make_examples
from export.training.images import augmented_pixels

NO_TOKEN = -100  # at padding of answers
_EASY_SHARES = (0.05, 0.55, 0.4, 0.0, 0.0)  # of scenes with 0 to 4 objects
_FULL_SHARES = (0.05, 0.15, 0.2, 0.28, 0.32)


@dataclass(frozen=True, slots=True)
class SceneKinds:
    """How many scenes of which kind a step draws."""

    object_shares: tuple[float, ...]  # of scenes with 0 to 4 objects
    word_share: float


ENCODER_SCENES = SceneKinds(_FULL_SHARES, 0.9)  # characters are learnt last by far


def joint_scenes(difficulty: float) -> SceneKinds:
    """Return mostly few objects at `difficulty` 0, and the full crowd at 1."""
    pairs = zip(_EASY_SHARES, _FULL_SHARES, strict=True)
    return SceneKinds(tuple(easy + difficulty * (full - easy) for easy, full in pairs), 0.65)


class Tensors:
    """A dataclass of tensors."""

    def to(self, device: str) -> None:
        """Move every tensor to `device`, in place."""
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            setattr(self, each.name, getattr(self, each.name).to(device))


@dataclass(slots=True)
class ImageBatch(Tensors):
    """Images and what stands at each cell (see `CellTargets`)."""

    pixels: Tensor  # (B, H, W, 3) uint8
    subject: Tensor  # (B, N)
    color: Tensor  # (B, N)
    shape: Tensor  # (B, N)
    size: Tensor  # (B, N)
    box: Tensor  # (B, N, 4) px
    half_characters: Tensor  # (B, N, 2)
    half_indices: Tensor  # (B, N, 2)
    text: Tensor  # (B, N, MAX_CHARACTERS)
    brightness: Tensor  # (B, N)


@dataclass(slots=True)
class SequenceBatch(Tensors):
    """Prompts and answers about the images of an `ImageBatch` (see `Example`)."""

    image_index: Tensor  # (Q,) which image
    prompt_ids: Tensor  # (Q, S)
    num_prompt: Tensor  # (Q,)
    answer_ids: Tensor  # (Q, T) NO_TOKEN at padding
    mentioned: Tensor  # (Q, T, N) bool
    coordinates: Tensor  # (Q, T)
    positions: Tensor  # (Q, T)
    steps: Tensor  # (Q, T)
    places: Tensor  # (Q, T)
    ranks: Tensor  # (Q, N)


def training_scenes(first_seed: int, num: int, kinds: SceneKinds) -> list[Scene]:
    """Return the scenes of `num` seeds."""
    scenes = []
    for seed in range(first_seed, first_seed + num):
        rng = default_rng((seed, 1))
        num_objects = int(rng.choice(len(kinds.object_shares), p=kinds.object_shares))
        scenes.append(sample_scene(seed, num_objects, bool(rng.random() < kinds.word_share)))
    return scenes


def image_batch(scenes: Sequence[Scene], targets: Sequence[CellTargets], rng: Generator) -> ImageBatch:
    """Draw the scenes, augmented."""
    pixels = torch.from_numpy(np.stack([augmented_pixels(scene, rng) for scene in scenes]))
    names = [each.name for each in fields(CellTargets)]
    columns = {name: torch.from_numpy(np.stack([getattr(target, name) for target in targets])) for name in names}
    return ImageBatch(pixels=pixels, **columns)


def sequence_batch(
    language: Language,
    scenes: Sequence[Scene],
    targets: Sequence[CellTargets],
    weights: Mapping[str, float],
    num_per_image: int,
    rng: Generator,
) -> SequenceBatch:
    """Draw examples about each scene and pad them."""
    examples = [
        (index, example)
        for index, (scene, target) in enumerate(zip(scenes, targets, strict=True))
        for example in make_examples(language, scene, target, weights, num_per_image, rng)
    ]
    return _stacked([index for index, _ in examples], [example for _, example in examples])


def _stacked(image_index: Sequence[int], examples: Sequence[Example]) -> SequenceBatch:
    def padded(name: str, value: float = 0) -> Tensor:
        return pad_sequence([torch.from_numpy(getattr(e, name)) for e in examples], True, value)

    return SequenceBatch(
        image_index=torch.tensor(image_index),
        prompt_ids=pad_sequence([torch.tensor(e.prompt_ids) for e in examples], True, 0),
        num_prompt=torch.tensor([len(e.prompt_ids) for e in examples]),
        answer_ids=padded("answer_ids", NO_TOKEN),
        mentioned=padded("mentioned"),
        coordinates=padded("coordinates", -1),
        positions=padded("positions"),
        steps=padded("steps"),
        places=padded("places", -1),
        ranks=torch.from_numpy(np.stack([e.ranks for e in examples])),
    )


def step_targets(scenes: Sequence[Scene]) -> list[CellTargets]:
    """Return what stands at each cell of each scene."""
    return [cell_targets(scene) for scene in scenes]
