"""Tuning, the export's checks and the service make the same pixels of a file."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from export.artifacts.vision_module import read_image_input
from export.checks.answers import load_photographs
from export.checks.reference import Reference
from export.tuning.examples import Example, TuningImage, read_labels
from export.tuning.training import Batches
from service.images.decoding import ImageDecoder, LazyImage
from tasks.prompts import PromptSegment
from tests.support.catalog import FLORENCE
from tests.support.export_cli import MODELS
from tests.support.fake_service import encoded, served
from tests.support.image_files import (
    LIMITS,
    ORIENTATION,
    colour_steps,
    grey16,
    half_transparent,
)
from wire.artifacts.manifest import Manifest
from wire.pixels import Pixels

OTHER_FRAME = [Image.new("RGB", (64, 32), "blue")]
TURNED = Image.Exif()
TURNED[ORIENTATION] = 6
FILES = {
    "transparent palette": encoded(colour_steps().convert("P"), transparency=1),
    "grey with alpha": encoded(half_transparent("LA")),
    "transparent WebP": encoded(half_transparent("RGBA"), "WEBP", lossless=True, exact=True),
    "16-bit grey": grey16([0, 0x0180, 0x4000, 0x8000, 0xC000, 0xFFFF]),
    "CMYK JPEG": encoded(colour_steps().convert("CMYK"), "JPEG"),
    "animated PNG": encoded(colour_steps(), save_all=True, append_images=OTHER_FRAME),
    "stereo JPEG": encoded(colour_steps(), "MPO", save_all=True, append_images=OTHER_FRAME),
    "turned PNG": encoded(colour_steps(), exif=TURNED),
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
    options = {"image_size_wh": image_input.size_wh, "resample": image_input.resample}
    return dataclasses.replace(served(FLORENCE).manifest, **options)  # type: ignore[arg-type]


async def served_image(data: bytes, manifest: Manifest) -> tuple[tuple[int, int], Pixels]:
    """Return the size in which boxes are, that of the upright image, and the pixels."""
    image = LazyImage(data, ImageDecoder(LIMITS, 2), "test")
    await image.open()
    return image.header.size_wh, await image.resized(manifest.image_size_wh, manifest.resample)


def tuned_pixel_values(reference: Reference, batches: Batches, labelled: TuningImage) -> Tensor:
    """Return the input of the vision tower, of a batch about an image of a dataset."""
    prompt = (PromptSegment("What does the image describe?"),)
    answer = (PromptSegment("a wall"),)
    example = Example(labelled.path, prompt, answer)
    inputs: list[Tensor] = []
    tower = reference.model.model.vision_tower
    hook = tower.register_forward_pre_hook(lambda _tower, arguments: inputs.append(arguments[0]))
    try:
        batches.stack([batches.tokenized(example)])
    finally:
        hook.remove()
    return inputs[0]


@pytest.mark.parametrize("name", FILES)
def test_pixels_of_checks_and_tuning(
    name: str, reference: Reference, batches: Batches, manifest: Manifest, tmp_path: Path
) -> None:
    """They are those that are served, in the same size."""
    path = tmp_path / "image.png"
    path.write_bytes(FILES[name])
    size_wh, pixels = asyncio.run(served_image(FILES[name], manifest))
    (checked,) = load_photographs([path], manifest)
    assert np.array_equal(np.asarray(checked.image), pixels)
    (tmp_path / "labels.jsonl").write_text('{"image": "image.png", "caption": "a wall"}')
    ((labelled,), _) = read_labels(tmp_path, tmp_path / "work")
    assert labelled.size_wh == checked.original_size_wh == size_wh
    processor = reference.processor.image_processor
    expected = processor([Image.fromarray(pixels)], do_resize=False, return_tensors="pt")
    assert torch.equal(tuned_pixel_values(reference, batches, labelled), expected["pixel_values"])
