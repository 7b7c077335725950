"""The vision encoder as ONNX: exported in float32 by optimum, then converted to int8 and float16.

    pixels uint8 (batch_size, H, W, 3) -> image_features float32 (batch_size, N, C)

int8 (CPU): weights of MatMul and Gemm are quantised per channel, their inputs dynamically.
Florence-2's graph is of one image (davit.py), because the runner encodes images one by one at int8.
float16 (CUDA): weights and activations; input and output keep their types; attention and GELU are
one operator each (fused_operators.py). All are exported with
SDPA, which scales queries and keys before it multiplies them: eager attention sums the products
first, in Florence-2 over all tokens of an image (36,864 at 768 pixels), and leaves the range of
float16. optimum has no configuration for Florence-2 or PaliGemma; this one fits both.
"""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from optimum.exporters.onnx import OnnxConfig, export
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig
from optimum.utils import DummyInputGenerator, NormalizedConfig

from export.artifacts.fused_operators import fuse
from export.artifacts.vision_module import VisionEncoderModule
from wire.artifacts.manifest import Precision, vision_encoder_file

_QUANTISED_OPERATORS = ["MatMul", "Gemm"]


class PixelsGenerator(DummyInputGenerator):  # type: ignore[misc]  # optimum has no types
    """Random pixels to trace the graph with."""

    SUPPORTED_INPUT_NAMES = ("pixels",)

    def __init__(
        self, _task: str, _config: NormalizedConfig, batch_size: int, width: int, height: int
    ) -> None:
        self._shape = (batch_size, height, width, 3)

    def generate(self, _name: str, framework: str = "pt", **_dtypes: str) -> Any:
        """Return a torch tensor ("pt") or a numpy array ("np"), as optimum's interface requires."""
        pixels = torch.randint(0, 256, self._shape, dtype=torch.uint8)
        return pixels if framework == "pt" else pixels.numpy()


class VisionEncoderOnnxConfig(OnnxConfig):  # type: ignore[misc]  # optimum has no types
    """Names and axes of the graph's input and output; the batch axis is dynamic."""

    NORMALIZED_CONFIG_CLASS = NormalizedConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (PixelsGenerator,)
    AXES: ClassVar = {0: "batch_size"}

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """The resized pixels."""
        return {"pixels": self.AXES}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The projected image features."""
        return {"image_features": self.AXES}


class OneImageOnnxConfig(VisionEncoderOnnxConfig):
    """The same names without a dynamic axis."""

    AXES: ClassVar[dict[int, str]] = {}


def export_vision_encoder(
    module: VisionEncoderModule,
    size_wh: tuple[int, int],
    output: Path,
    is_for_one_image: bool = False,
) -> None:
    """Write `module` to `output` in float32, for images of exactly `size_wh`, in batches or one at
    a time.
    """
    width, height = size_wh
    config = (OneImageOnnxConfig if is_for_one_image else VisionEncoderOnnxConfig)(module.config)
    # a dynamic batch of one would be traced as a constant
    batch_size = 1 if is_for_one_image else 2
    with module.attention("sdpa"), warnings.catch_warnings():
        # Sizes are fixed, so Python values that depend on them may be traced as constants.
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        # optimum 2.3 exports by tracing, which torch 2.13 calls deprecated.
        warnings.simplefilter("ignore", category=DeprecationWarning)
        export(
            module,
            config,
            output,
            input_shapes={"batch_size": batch_size, "width": width, "height": height},
        )


def write_at_precision(folder: Path, precision: Precision, config: Any) -> None:
    """Convert the float32 graph in `folder` to `precision`, beside it; `config` is the
    checkpoint's.
    """
    source = folder / vision_encoder_file("float32")
    output = folder / vision_encoder_file(precision)
    match precision:
        case "float32":
            return
        case "int8":
            write_int8(source, output, config)
        case "float16":
            model = onnx.load(source)
            fuse(model)
            onnx.save(convert_float_to_float16(model, keep_io_types=True), output)
        case "bfloat16":
            raise ValueError(
                "ONNX Runtime has no bfloat16 vision encoder; allowed: float32, int8, float16"
            )


def write_int8(source: Path, output: Path, config: Any) -> None:
    """Quantise with optimum, whose own configuration files are discarded."""
    # Attention multiplies two activations: quantising them would gain little and lose more
    # accuracy.
    graph = onnx.load(source, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    without_weights = [
        node.name
        for node in graph.node
        if node.op_type in _QUANTISED_OPERATORS and not weights.intersection(node.input)
    ]
    options = AutoQuantizationConfig.avx512_vnni(
        is_static=False,
        per_channel=True,
        operators_to_quantize=_QUANTISED_OPERATORS,
        nodes_to_exclude=without_weights,
    )
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        ORTQuantizer(source, config=config).quantize(options, save_dir=scratch, file_suffix=None)
        shutil.move(Path(scratch) / source.name, output)
