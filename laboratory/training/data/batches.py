"""The batch of one training step: augmented images, prompts and answers as tensors.

Scenes depend only on the step's number, so that a resumed run equals an uninterrupted one.
Shapes: B images, Q sequences, S prompt (padded), T answer (padded), N cells.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from export.scenes import Scene, render_scene, sample_scene
from export.scenes.scene import CANVAS_PX
from imaging.files import resize
from laboratory.training.data.cell_targets import CellTargets
from laboratory.training.data.examples import Example, Language, make_examples

NO_TOKEN = -100  # padding of answers
_EASY_SHARES = (0.05, 0.55, 0.4, 0.0, 0.0)  # scenes with 0 to 4 objects
_FULL_SHARES = (0.05, 0.15, 0.2, 0.28, 0.32)
_SIZES_PX = (90, 512)  # larger ones would differ only in the downscaling
_NATIVE_SHARE = 0.2  # rendered at the model's input size: fast, and the sharpest
_BLUR_SHARE = 0.2
_MAX_BLUR = 0.006  # radius as a share of the side
_JPEG_SHARE = 0.3
_JPEG_QUALITIES = (50, 95)


@dataclass(frozen=True, slots=True)
class SceneKinds:
    """The distribution of a step's scenes."""

    object_shares: tuple[float, ...]  # scenes with 0 to 4 objects
    word_share: float


ENCODER_SCENES = SceneKinds(_FULL_SHARES, 0.9)  # characters take longest to learn


def joint_scenes(difficulty: float) -> SceneKinds:
    """Return the distribution at a `difficulty` from 0 (mostly few objects) to 1 (mostly many)."""
    pairs = zip(_EASY_SHARES, _FULL_SHARES, strict=True)
    return SceneKinds(tuple(easy + difficulty * (full - easy) for easy, full in pairs), 0.65)


class Tensors:
    """Base of dataclasses of tensors."""

    def to(self, device: str) -> None:
        """Move every tensor to `device`, in place."""
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            setattr(self, each.name, getattr(self, each.name).to(device))


@dataclass(slots=True)
class ImageBatch(Tensors):
    """Images and the targets of their cells (see `CellTargets`)."""

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

    image_index: Tensor  # (Q,) index of the image
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


def augmented_pixels(scene: Scene, rng: Generator, side_px: int = CANVAS_PX) -> NDArray[np.uint8]:
    """Render at a random size, sometimes blur or compress, and resize to (side_px, side_px, 3)."""
    smallest, largest = np.log(_SIZES_PX)
    is_native = rng.random() < _NATIVE_SHARE
    image = render_scene(
        scene, side_px if is_native else round(float(np.exp(rng.uniform(smallest, largest))))
    )
    if rng.random() < _BLUR_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, _MAX_BLUR) * image.width))
    if rng.random() < _JPEG_SHARE:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(*_JPEG_QUALITIES)))
        image = Image.open(file)
    return np.asarray(resize(image, (side_px, side_px), Image.Resampling.BICUBIC))


def image_batch(
    scenes: Sequence[Scene], targets: Sequence[CellTargets], rng: Generator
) -> ImageBatch:
    """Return the augmented images of scenes with their targets."""
    pixels = torch.from_numpy(np.stack([augmented_pixels(scene, rng) for scene in scenes]))
    columns = {}
    for name in (each.name for each in fields(CellTargets)):
        values = [getattr(target, name) for target in targets]
        columns[name] = torch.from_numpy(np.stack(values))
    return ImageBatch(pixels=pixels, **columns)


def sequence_batch(
    language: Language,
    scenes: Sequence[Scene],
    targets: Sequence[CellTargets],
    weights: Mapping[str, float],
    num_per_image: int,
    rng: Generator,
) -> SequenceBatch:
    """Sample examples about each scene and pad them."""
    indices = list[int]()
    examples = list[Example]()
    for index, (scene, target) in enumerate(zip(scenes, targets, strict=True)):
        own = make_examples(language, scene, target, weights, num_per_image, rng)
        indices += [index] * len(own)
        examples += own

    def padded(name: str, value: float = 0) -> Tensor:
        return pad_sequence([torch.from_numpy(getattr(e, name)) for e in examples], True, value)

    return SequenceBatch(
        image_index=torch.tensor(indices),
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
