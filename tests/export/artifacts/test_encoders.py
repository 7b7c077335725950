import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.artifacts.encoders import (
    load_vision_model,
    make_encoders_in_child,
    run_in_child,
    write_merged,
)
from export.artifacts.vision_module import ImageInput, VisionEncoderModule
from export.checkpoints.sources import resolve_source
from export.errors import EncoderError, SourceError
from runners.adapters.peft import Product, VisionPart
from runners.encoder.session import VisionEncoder
from tests.support.export_cli import MODELS

PROJECTOR = "model.multi_modal_projector.linear"
INPUT = ImageInput((192, 192), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.long
def test_the_child_takes_merged_weights_in_the_place_of_those_of_the_checkpoint(
    tmp_path: Path,
) -> None:
    checkpoint = MODELS / "paligemma-mini"
    merged = tmp_path / "merged.safetensors"
    save_file({f"{PROJECTOR}.bias": torch.full((128,), 3.0)}, merged)
    make_encoders_in_child(checkpoint, INPUT, ["float32"], tmp_path, merged)
    encoder = VisionEncoder(tmp_path)
    encoder.load()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 192, 192, 3), dtype=np.uint8)
    found = encoder.encode(pixels)
    expected, base = (
        VisionEncoderModule(load_vision_model(checkpoint, each), INPUT)(
            torch.from_numpy(pixels)
        ).detach()
        for each in (merged, None)
    )
    assert (found - expected).abs().max() < 1e-3
    assert (found - base).abs().min() > 1


def test_merged_weights_are_those_of_the_checkpoint_with_the_changes_of_the_adapter(
    tmp_path: Path,
) -> None:
    checkpoint = MODELS / "paligemma-mini"
    before = load_vision_model(checkpoint).get_submodule(PROJECTOR).weight.detach()
    num_outputs, num_inputs = before.shape
    product = Product(PROJECTOR, 1, torch.full((1, num_inputs), 2.0), torch.ones(num_outputs, 1))
    bias = torch.full((num_outputs,), 3.0)
    changes = VisionPart({f"{PROJECTOR}.weight": product}, {f"{PROJECTOR}.bias": bias})
    write_merged(checkpoint, changes, tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert merged.keys() == {f"{PROJECTOR}.weight", f"{PROJECTOR}.bias"}
    assert merged[f"{PROJECTOR}.bias"].equal(bias)
    assert (merged[f"{PROJECTOR}.weight"] - before - 2).abs().max() < 1e-6  # float32


def test_failure_of_the_child_is_one_line() -> None:
    with pytest.raises(
        EncoderError,
        match=r"^the vision encoders cannot be made: ValueError: the graph is too large$",
    ):
        run_in_child(exec, 'raise ValueError("the graph\\n  is too large")')


def test_error_of_the_export_is_raised_from_the_child_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is neither a folder nor a hub id"):
        run_in_child(resolve_source, "a/b/c", None, "florence2", tmp_path)


def test_killed_child_is_one_line() -> None:
    with pytest.raises(EncoderError, match="was killed, probably by the kernel for lack of memory"):
        run_in_child(os._exit, 9)
