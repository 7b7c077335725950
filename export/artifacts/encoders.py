"""The vision encoders of a checkpoint in every precision, made in this process or in a child.

Those of an adapter are made of its base's checkpoint and a file of merged weights, which take the
place of the base's. Tracing and conversion hold several copies of a graph; a child gives all of
this memory back when it ends.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from export.artifacts.davit import TokenRowsDavit
from export.artifacts.onnx_graphs import (
    export_vision_encoder,
    write_float16,
    write_int8,
)
from export.artifacts.vision_module import ImageInput, VisionEncoderModule
from export.checkpoints.tensors import VISION_PREFIXES, CheckpointTensors, empty_model
from export.errors import ExportError, SourceError
from runners.adapters.peft import AdapterParts
from wire.artifacts.manifest import ArtifactError, Precision, vision_encoder_file


def make_encoders(
    checkpoint: Path,
    image_input: ImageInput,
    precisions: Sequence[Precision],
    folder: Path,
    merged: Path | None = None,
    in_child: bool = False,
) -> None:
    """Write the vision encoder in float32 and in `precisions`; raise `ExportError`."""
    if not in_child:
        _make(checkpoint, image_input, precisions, folder, merged)
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        making = pool.submit(_make, checkpoint, image_input, precisions, folder, merged)
    try:
        making.result()
    except BrokenProcessPool as error:
        raise ExportError(
            "the process that makes the vision encoders was killed, probably for lack of memory"
        ) from error


def _make(
    checkpoint: Path,
    image_input: ImageInput,
    precisions: Sequence[Precision],
    folder: Path,
    merged: Path | None,
) -> None:
    model = load_vision_model(checkpoint, merged)
    model.model.vision_tower.set_attn_implementation("sdpa")
    fast_tower = use_fast_tower(model)
    module = VisionEncoderModule(model, image_input)
    source = folder / vision_encoder_file("float32")
    export_vision_encoder(module, image_input.size_wh, source)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if fast_tower is not None and "int8" in precisions:
            fast_tower.is_for_one_image = True
            source = Path(scratch) / "one-image.onnx"
            export_vision_encoder(module, image_input.size_wh, source, is_for_one_image=True)
        del module, model, fast_tower
        if "int8" in precisions:
            write_int8(source, folder / vision_encoder_file("int8"))
    if "float16" in precisions:
        write_float16(folder)


def load_vision_model(checkpoint: Path, merged: Path | None = None) -> Any:
    """Load vision tower and projector; `merged` (safetensors) replaces some of their weights."""
    tensors = CheckpointTensors.open(checkpoint)
    model = empty_model(checkpoint)
    for prefix in VISION_PREFIXES:
        name = prefix.removesuffix(".")
        tensors.fill(model.get_submodule(name), name)
    if merged is not None:
        model.load_state_dict(load_file(merged), strict=False)
    for name, weight in model.named_parameters():
        if name.startswith(VISION_PREFIXES) and not weight.isfinite().all():
            raise SourceError(f"{name} is infinite or not a number: the training diverged")
    return model


def write_merged(checkpoint: Path, changes: AdapterParts, output: Path) -> None:
    """Write the weights merged with an adapter's; raise `ArtifactError` if one does not fit."""
    tensors = CheckpointTensors.open(checkpoint)
    merged = dict[str, Tensor]()
    for name, product in changes.products.items():
        weight = tensors.get(name)
        product.check(None if weight is None else tuple(weight.shape))
        merged[name] = product.added_to(tensors[name])
    for name, replaced in changes.replaced.items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        if shape != tuple(replaced.shape):
            raise ArtifactError(
                f"the adapter has {name} of shape {tuple(replaced.shape)}; its base has {shape}"
            )
        merged[name] = replaced.contiguous()
    save_file(merged, output)


def use_fast_tower(model: Any) -> TokenRowsDavit | None:
    """Replace the vision tower by its faster form, and return that; None if the family has none."""
    if model.config.model_type != "florence2":
        return None
    tower = TokenRowsDavit(model.model.vision_tower)
    model.model.vision_tower = tower
    return tower
