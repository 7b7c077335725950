"""Tuning, the export's checks and the service make the same pixels of a file."""

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export.artifacts.vision_module import read_image_input
from export.checks.answers import load_photographs
from export.checks.reference import Reference
from export.tuning.batches import Batches
from export.tuning.examples import Example, read_labels
from service.images.decoding import ImageDecoder, LazyImage
from tasks.prompts import PromptSegment
from tasks.table import TaskParameters
from tests.support.catalog import FLORENCE
from tests.support.export_cli import MODELS
from tests.support.fake_service import encoded, served
from tests.support.image_files import (
    LIMITS,
    ORIENTATION,
    RED,
    colour_steps,
    grey16,
    half_transparent,
)
from wire.artifacts.manifest import Manifest


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def half_transparent_palette() -> Image.Image:
    image = Image.new("P", (64, 32), 0)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(1, (32, 0, 64, 32))
    return image


OTHER_FRAME = [Image.new("RGB", (64, 32), "blue")]
FILES = {
    "transparent PNG": encoded(half_transparent("RGBA")),
    "half-transparent PNG": encoded(Image.new("RGBA", (64, 32), (*RED, 128))),
    "transparent palette": encoded(half_transparent_palette(), transparency=1),
    "colour key": encoded(colour_steps(), transparency=RED),
    "grey with alpha": encoded(half_transparent("LA")),
    "transparent WebP": encoded(half_transparent("RGBA"), "WEBP", lossless=True, exact=True),
    "16-bit grey": grey16([0, 0x0180, 0x4000, 0x8000, 0xC000, 0xFFFF]),
    "1 bit": encoded(colour_steps().convert("1")),
    "grey": encoded(colour_steps().convert("L")),
    "palette": encoded(colour_steps().convert("P")),
    "CMYK JPEG": encoded(colour_steps().convert("CMYK"), "JPEG"),
    "animated PNG": encoded(colour_steps(), save_all=True, append_images=OTHER_FRAME),
    "animated WebP": encoded(colour_steps(), "WEBP", save_all=True, append_images=OTHER_FRAME),
    "stereo JPEG": encoded(colour_steps(), "MPO", save_all=True, append_images=OTHER_FRAME),
    **{
        f"JPEG turned by {each}": encoded(colour_steps(), "JPEG", exif=turned(each))
        for each in range(1, 9)
    },
    "PNG turned by 6": encoded(colour_steps(), exif=turned(6)),
    "WebP turned by 6": encoded(colour_steps(), "WEBP", exif=turned(6)),
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(MODELS / FLORENCE.id)


@pytest.fixture(scope="module")
def batches(reference: Reference) -> Batches:
    return Batches(reference.model, reference.processor, MODELS / FLORENCE.id)


@pytest.fixture
def manifest(reference: Reference) -> Manifest:
    image_input = read_image_input(reference.processor.image_processor)
    synthetic = served(FLORENCE).manifest
    return dataclasses.replace(
        synthetic, image_size_wh=image_input.size_wh, resample=image_input.resample
    )


async def served_pixels(data: bytes, manifest: Manifest) -> NDArray[np.uint8]:
    image = LazyImage(data, ImageDecoder(LIMITS, 2), "test")
    await image.open()
    return await image.pixels(manifest)


def tuned_pixel_values(reference: Reference, batches: Batches, path: Path) -> Tensor:
    """Return the input of the vision tower, of a batch about the image of a dataset."""
    dataset = path.with_suffix(".jsonl")
    dataset.write_text(json.dumps({"image": path.name, "caption": "a wall"}), encoding="utf-8")
    (labelled,) = read_labels(dataset, path.parent / "work").images
    prompt = (PromptSegment("What does the image describe?"),)
    answer = (PromptSegment("a wall"),)
    example = Example(labelled.path, prompt, answer, TaskParameters(), labelled.size_wh)
    inputs: list[Tensor] = []
    tower = reference.model.model.vision_tower
    hook = tower.register_forward_pre_hook(lambda _tower, arguments: inputs.append(arguments[0]))
    try:
        batches.stack([batches.tokenized(example)])
    finally:
        hook.remove()
    return inputs[0]


@pytest.mark.parametrize("name", FILES)
def test_the_checks_see_the_pixels_that_are_served(
    name: str, manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(FILES[name])
    (checked,) = load_photographs([path], manifest)
    assert np.array_equal(
        np.asarray(checked.image), asyncio.run(served_pixels(FILES[name], manifest))
    )


@pytest.mark.parametrize("name", FILES)
def test_tuning_sees_the_pixels_that_are_served(
    name: str, reference: Reference, batches: Batches, manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(FILES[name])
    pixels = Image.fromarray(asyncio.run(served_pixels(FILES[name], manifest)))
    expected = reference.processor.image_processor([pixels], do_resize=False, return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(tuned_pixel_values(reference, batches, path), expected)


@pytest.mark.parametrize("name", FILES)
def test_labels_and_checks_see_the_size_that_is_served(
    name: str, manifest: Manifest, tmp_path: Path
) -> None:
    """Boxes are in pixels of the upright image."""
    path = tmp_path / "image.png"
    path.write_bytes(FILES[name])
    (tmp_path / "labels.jsonl").write_text('{"image": "image.png", "caption": "a wall"}')
    image = LazyImage(FILES[name], ImageDecoder(LIMITS, 2), "test")
    asyncio.run(image.open())
    (labelled,) = read_labels(tmp_path, tmp_path / "work").images
    (checked,) = load_photographs([path], manifest)
    assert labelled.size_wh == checked.original_size_wh == image.header.size_wh
