from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from export.artifacts.onnx_graphs import export_vision_encoder, write_float16
from export.artifacts.vision_module import ImageInput, VisionEncoderModule, read_image_input
from export.checks.parity import extreme_images, measure_half_encoder
from export.checks.reference import Reference
from export.errors import ParityError
from tests.support.export_cli import MODELS
from wire.artifacts.manifest import vision_encoder_file


@pytest.fixture
def reference() -> Reference:
    return Reference.load(MODELS / "florence-2-mini")


@pytest.fixture
def image_input(reference: Reference) -> ImageInput:
    return read_image_input(reference.processor.image_processor)


def features(file: Path, pixels: NDArray[np.uint8]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"pixels": pixels})[0])


def measure_extremes(folder: Path) -> dict[str, float]:
    images = extreme_images((192, 192))
    pixels = np.stack([np.asarray(image) for image in images.values()])
    float32 = features(folder / "vision_encoder.onnx", pixels)
    return measure_half_encoder(folder, images, float32)


def test_exported_float16_encoder_holds_on_white_black_and_noise(artifacts: Path) -> None:
    assert measure_extremes(artifacts)["mean_cosine"] > 0.999


def test_eager_attention_overflows_where_onnx_runtime_on_the_cpu_does_not(
    reference: Reference, image_input: ImageInput, tmp_path: Path
) -> None:
    # the products of queries and keys are summed, then scaled
    module = VisionEncoderModule(reference.model, image_input)
    export_vision_encoder(module, image_input.size_wh, tmp_path / "vision_encoder.onnx")
    write_float16(tmp_path)
    with pytest.raises(ParityError, match=r"the float16 encoder on the white image differs .*nan"):
        measure_extremes(tmp_path)
    white = np.full((1, 192, 192, 3), 255, np.uint8)
    assert features(tmp_path / vision_encoder_file("float16"), white).isfinite().all()
