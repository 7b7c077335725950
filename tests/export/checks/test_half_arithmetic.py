from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.artifacts.onnx_graphs import export_vision_encoder, write_at_precision
from export.artifacts.vision_module import ImageInput, VisionEncoderModule, read_image_input
from export.checks.half_arithmetic import HalfEncoder
from export.checks.parity import extreme_images, measure_half_encoder
from export.checks.reference import Reference
from export.errors import ParityError
from runners.encoder.session import VisionEncoder
from tests.support.export_cli import MODELS


class EagerModule(VisionEncoderModule):
    """Always eager: products of queries and keys are summed, then scaled."""

    @contextmanager
    def attention(self, implementation: str) -> Iterator[None]:
        assert implementation == "sdpa"
        with super().attention("eager"):
            yield


@pytest.fixture
def reference() -> Reference:
    return Reference.load(MODELS / "florence-2-mini")


@pytest.fixture
def image_input(reference: Reference) -> ImageInput:
    return read_image_input(reference.processor.image_processor)


def write_graphs(module: VisionEncoderModule, image_input: ImageInput, folder: Path) -> None:
    export_vision_encoder(module, image_input.size_wh, folder / "vision_encoder.onnx")
    write_at_precision(folder, "float16", module.config)


def measure_extremes(folder: Path, image_input: ImageInput) -> dict[str, float]:
    images = extreme_images(image_input.size_wh)
    encoder = VisionEncoder(folder)
    encoder.load()
    return measure_half_encoder(
        folder,
        images,
        encoder.encode(np.stack([np.asarray(each) for each in images.values()])).numpy(),
    )


def test_exported_float16_encoder_holds_on_white_black_and_noise(artifacts: Path) -> None:
    assert (
        measure_extremes(artifacts, ImageInput((192, 192), 3, 1 / 255, (), ()))["mean_cosine"]
        > 0.999
    )


def test_eager_attention_overflows_where_onnx_runtime_on_the_cpu_does_not(
    reference: Reference, image_input: ImageInput, tmp_path: Path
) -> None:
    write_graphs(EagerModule(reference.model, image_input), image_input, tmp_path)
    with pytest.raises(ParityError, match=r"the float16 encoder on the white image differs .*nan"):
        measure_extremes(tmp_path, image_input)
    on_cpu = VisionEncoder(tmp_path, precision="float16")
    on_cpu.load()
    assert on_cpu.encode(np.full((1, 192, 192, 3), 255, np.uint8)).isfinite().all()


def test_export_leaves_the_reference_with_eager_attention(
    reference: Reference, image_input: ImageInput, tmp_path: Path
) -> None:
    module = VisionEncoderModule(reference.model, image_input)
    export_vision_encoder(module, image_input.size_wh, tmp_path / "vision_encoder.onnx")
    assert reference.model.model.vision_tower.config._attn_implementation == "eager"


def test_every_product_is_rounded_to_float16(tmp_path: Path) -> None:
    # 255 * 255 * 2 exceeds float16, although the last product brings it back into range.
    factors = [
        helper.make_tensor(name, TensorProto.FLOAT16, (), [value])
        for name, value in (("a", 255), ("b", 0.01))
    ]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "a"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["z"]),
        helper.make_node("Mul", ["z", "b"], ["w"]),
        helper.make_node("Cast", ["w"], ["features"], to=TensorProto.FLOAT),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, (2,))
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, (2,))
    graph = helper.make_graph(nodes, "products", [pixels], [features], factors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]),
        tmp_path / "graph.onnx",
    )
    small, large = HalfEncoder(tmp_path / "graph.onnx").encode(np.array([1, 255], np.uint8))
    assert small == pytest.approx(5.1, rel=1e-3)
    assert large == np.inf
