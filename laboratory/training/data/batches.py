"""The batch of one training step: augmented images, prompts and answers as tensors.

Scenes depend only on the step's number, so that a resumed run equals an uninterrupted one.
Shapes: B images, Q sequences, S prompt (padded), T answer (padded), N cells.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from imaging.files import resize
from laboratory.training.data.cell_targets import CellTargets
from laboratory.training.data.examples import Example, Language, make_examples
from laboratory.training.data.pictures import Picture

NO_TOKEN = -100  # padding of answers
_NATIVE_SHARE = 0.2  # rendered at the model's input size: fast, and the sharpest
_BLUR_SHARE = 0.2
_MAX_BLUR = 0.006  # radius as a share of the side
_JPEG_SHARE = 0.3
_JPEG_QUALITIES = (50, 95)
_BY_TOKEN = ("answer_ids", "mentioned", "coordinates", "positions", "steps", "places")


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
    thing: Tensor  # (B, N)
    size: Tensor  # (B, N)
    box: Tensor  # (B, N, 4) px
    characters: Tensor  # (B, N, NUM_SLOTS)
    indices: Tensor  # (B, N, NUM_SLOTS)
    brightness: Tensor  # (B, N)


@dataclass(slots=True)
class SequenceBatch(Tensors):
    """Prompts and answers about the images of an `ImageBatch` (see `Example`), by answer length."""

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

    def groups(self, num: int) -> list["SequenceBatch"]:
        """Return `num` batches of neighbours, each padded to its own longest sequence."""
        groups = []
        for rows in torch.arange(len(self.ranks), device=self.ranks.device).chunk(num):
            values = {each.name: getattr(self, each.name)[rows] for each in fields(self)}
            num_tokens = int((values["answer_ids"] != NO_TOKEN).sum(dim=1).max())
            for name in _BY_TOKEN:
                values[name] = values[name][:, :num_tokens]
            values["prompt_ids"] = values["prompt_ids"][:, : int(values["num_prompt"].max())]
            groups.append(SequenceBatch(**values))
        return groups


def augmented_pixels(
    picture: Picture, rng: Generator, side_px: int, sizes_px: tuple[int, int]
) -> NDArray[np.uint8]:
    """Render at a random size, sometimes blur or compress, and resize to (side_px, side_px, 3)."""
    smallest, largest = np.log(sizes_px)
    is_native = rng.random() < _NATIVE_SHARE
    image = picture.render(
        side_px if is_native else round(float(np.exp(rng.uniform(smallest, largest))))
    )
    if rng.random() < _BLUR_SHARE:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, _MAX_BLUR) * image.width))
    if rng.random() < _JPEG_SHARE:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(*_JPEG_QUALITIES)))
        image = Image.open(file)
    return np.asarray(resize(image, (side_px, side_px), Image.Resampling.BICUBIC))


def image_batch(
    pictures: Sequence[Picture],
    targets: Sequence[CellTargets],
    rng: Generator,
    side_px: int,
    sizes_px: tuple[int, int],
) -> ImageBatch:
    """Return the augmented images of pictures with their targets."""
    pixels = [augmented_pixels(picture, rng, side_px, sizes_px) for picture in pictures]
    columns = {}
    for name in (each.name for each in fields(ImageBatch) if each.name != "pixels"):
        values = [getattr(target, name) for target in targets]
        columns[name] = torch.from_numpy(np.stack(values))
    return ImageBatch(pixels=torch.from_numpy(np.stack(pixels)), **columns)


def sequence_batch(
    language: Language,
    pictures: Sequence[Picture],
    targets: Sequence[CellTargets],
    weights: Mapping[str, float],
    num_per_image: int,
    rng: Generator,
) -> SequenceBatch:
    """Sample examples about each picture and pad them."""
    sampled = list[tuple[int, Example]]()
    for index, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
        own = make_examples(language, picture, target, weights, num_per_image, rng)
        sampled += [(index, example) for example in own]
    sampled.sort(key=lambda each: len(each[1].answer_ids))
    examples = [example for _, example in sampled]

    def padded(name: str, value: float = 0) -> Tensor:
        return pad_sequence([torch.from_numpy(getattr(e, name)) for e in examples], True, value)

    return SequenceBatch(
        image_index=torch.tensor([index for index, _ in sampled]),
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
