from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, SiglipImageProcessor

from export.artifacts.encoders import load_vision_model, make_encoders, write_merged
from export.artifacts.vision_module import ImageInput, VisionEncoderModule, read_image_input
from export.checks.reference import Reference
from export.errors import SourceError
from runners.adapters.peft import AdapterParts, Product
from runners.encoder.session import load_encoder
from tests.support.export_cli import MODELS

CHECKPOINT = MODELS / "paligemma-mini"
PROJECTOR = "model.multi_modal_projector.linear"
# Features are up to about 6; sums of some hundred terms have another order.
FLOAT32_ROUNDING = 1e-4
INPUT = ImageInput((192, 192), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def random_pixels(num_images: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (num_images, 192, 192, 3), dtype=np.uint8)


@pytest.mark.long
def test_the_child_takes_merged_weights(tmp_path: Path) -> None:
    merged = tmp_path / "merged.safetensors"
    save_file({f"{PROJECTOR}.bias": torch.full((128,), 3.0)}, merged)
    make_encoders(CHECKPOINT, INPUT, ["float32"], tmp_path, merged, in_child=True)
    encoder = load_encoder(tmp_path)
    pixels = random_pixels(1)
    features = encoder.encode(pixels)
    results = []
    for weights in (merged, None):
        module = VisionEncoderModule(load_vision_model(CHECKPOINT, weights), INPUT)
        results.append(module(torch.from_numpy(pixels)).detach())
    expected, base = results
    assert (features - expected).abs().max() < 1e-3
    assert (features - base).abs().min() > 1


def test_merged_weights_have_the_adapters_changes(tmp_path: Path) -> None:
    before = load_vision_model(CHECKPOINT).get_submodule(PROJECTOR).weight.detach()
    num_outputs, num_inputs = before.shape
    product = Product(PROJECTOR, 1, torch.full((1, num_inputs), 2.0), torch.ones(num_outputs, 1))
    bias = torch.full((num_outputs,), 3.0)
    changes = AdapterParts({}, {f"{PROJECTOR}.weight": product}, {f"{PROJECTOR}.bias": bias})
    write_merged(CHECKPOINT, changes, tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert merged.keys() == {f"{PROJECTOR}.weight", f"{PROJECTOR}.bias"}
    assert merged[f"{PROJECTOR}.bias"].equal(bias)
    assert (merged[f"{PROJECTOR}.weight"] - before - 2).abs().max() < 1e-6  # float32


def test_failure_of_the_child_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="transformers cannot load"):
        make_encoders(tmp_path, INPUT, ["float32"], tmp_path, in_child=True)


def test_features_are_transformers_in_any_batch(artifacts: Path, checkpoint: Path) -> None:
    encoder = load_encoder(artifacts)
    pixels = random_pixels(3)
    images = [Image.fromarray(image) for image in pixels]
    expected = Reference.load(checkpoint).image_features(images)
    singles = torch.cat([encoder.encode(image[None]) for image in pixels])
    for features in (encoder.encode(pixels), singles):
        np.testing.assert_allclose(features, expected, atol=FLOAT32_ROUNDING)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (CLIPImageProcessor(size={"height": 192, "width": 192}), "do_center_crop"),
        (CLIPImageProcessor(size={"shortest_edge": 192}, do_center_crop=False), "shortest_edge"),
        (SiglipImageProcessor(do_normalize=False), "do_normalize"),
    ],
)
def test_other_steps_of_an_image_processor_are_refused(processor: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_image_input(processor)


def test_an_image_input_has_the_processors_settings() -> None:
    size = {"height": 224, "width": 448}
    image_input = read_image_input(SiglipImageProcessor(size=size, image_std=[0.5, 0.6, 0.7]))
    assert (image_input.size_wh, image_input.std) == ((448, 224), (0.5, 0.6, 0.7))
    assert image_input.resample == Image.Resampling.BICUBIC
