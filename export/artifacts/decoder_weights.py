"""A checkpoint's model as transformers loads it, and the part of its weights that the decoder needs."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from export.checkpoints.errors import SourceError

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types

_VISION_PREFIXES = ("model.vision_tower.", "model.multi_modal_projector.")


def load_checkpoint(folder: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint's model, casting each weight to `dtype` as it is read; raise `SourceError` if incomplete."""
    try:
        model, loading = _Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise SourceError(f"transformers cannot load the checkpoint: {error}") from error
    if absent := sorted({*loading["missing_keys"], *map(str, loading["mismatched_keys"])}):
        raise SourceError(f"the checkpoint lacks {len(absent)} weights of its configuration, first {absent[0]}")
    return model.eval()


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a checkpoint's floating-point weights; float32 if they have several."""
    dtypes: set[torch.dtype] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            dtypes.update(tensors.get_tensor(name).dtype for name in tensors.keys())  # noqa: SIM118 (not a dict)
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    return floats.pop() if len(floats) == 1 else torch.float32


def write_decoder_weights(model: Any, output: Path) -> None:
    """Write all weights but those of the vision tower and the projector, in their dtype, under transformers' names.

    A decoder derives every other precision from this file when it starts. A weight tied to another (the output head to
    the embedding) is left out.
    """
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(_VISION_PREFIXES) and name not in model.all_tied_weights_keys
    }
    save_file(weights, output, metadata={"format": "pt"})
