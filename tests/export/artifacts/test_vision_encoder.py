from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from export.artifacts.vision_module import read_image_input
from export.checks.reference import Reference
from export.errors import ImageProcessorError
from runners.encoder.session import VisionEncoder

# Features are up to about 6; sums of some hundred terms have another order.
FLOAT32_ROUNDING = 1e-4


@pytest.fixture
def encoder(artifacts: Path) -> VisionEncoder:
    encoder = VisionEncoder(artifacts)
    encoder.load()
    return encoder


def random_pixels(num_images: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num_images, 192, 192, 3), dtype=np.uint8)


def test_batch_equals_single_images(encoder: VisionEncoder) -> None:
    pixels = random_pixels(5)
    singles = torch.cat([encoder.encode(one[None]) for one in pixels])
    np.testing.assert_allclose(encoder.encode(pixels), singles, atol=FLOAT32_ROUNDING)


def test_graph_equals_transformers(encoder: VisionEncoder, checkpoint: Path) -> None:
    pixels = random_pixels(3)
    reference = Reference.load(checkpoint)
    expected = reference.image_features([Image.fromarray(one) for one in pixels])
    np.testing.assert_allclose(encoder.encode(pixels), expected, atol=FLOAT32_ROUNDING)


def test_generation_from_image_features_equals_generation_from_pixels(checkpoint: Path) -> None:
    reference = Reference.load(checkpoint)
    image = Image.fromarray(random_pixels(1)[0])
    (features,) = reference.image_features([image])
    ours = reference.generate("caption en", image, features, 8)
    inputs = reference.processor(
        images=image, text=reference.prompt_text("caption en"), return_tensors="pt"
    )
    inputs.pop("labels", None)
    with torch.inference_mode():
        ids = reference.model.generate(**inputs, max_new_tokens=8, num_beams=1, do_sample=False)
    assert tuple(ids[0, -len(ours.token_ids) :].tolist()) == ours.token_ids


def test_image_processor_that_crops_is_refused() -> None:
    with pytest.raises(ImageProcessorError, match="do_center_crop"):
        read_image_input(CLIPImageProcessor(size={"height": 192, "width": 192}))


def test_image_processor_that_keeps_the_aspect_ratio_is_refused() -> None:
    with pytest.raises(ImageProcessorError, match="shortest_edge"):
        read_image_input(CLIPImageProcessor(size={"shortest_edge": 192}, do_center_crop=False))


def test_image_processor_without_normalisation_is_refused() -> None:
    with pytest.raises(ImageProcessorError, match="do_normalize"):
        read_image_input(SiglipImageProcessor(do_normalize=False))


def test_image_input_has_the_image_processors_settings() -> None:
    image_input = read_image_input(
        SiglipImageProcessor(size={"height": 224, "width": 448}, image_std=[0.5, 0.6, 0.7])
    )
    assert image_input.size_wh == (448, 224)
    assert image_input.std == (0.5, 0.6, 0.7)
    assert image_input.resample == Image.Resampling.BICUBIC
