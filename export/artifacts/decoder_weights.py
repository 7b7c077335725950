"""A checkpoint's model as transformers loads it, and the part of its weights that the decoder
needs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from export.artifacts.checkpoint_tensors import (
    LOAD_ERRORS,
    VISION_PREFIXES,
    complete_rules,
    one_line,
)
from export.checkpoints.errors import SourceError

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types


def load_checkpoint(folder: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint's model, casting each weight to `dtype` as it is read.

    Raise `SourceError` if incomplete.
    """
    try:
        model, loading = _Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise SourceError(f"transformers cannot load the checkpoint: {one_line(error)}") from error
    if absent := sorted({*loading["missing_keys"], *map(str, loading["mismatched_keys"])}):
        raise SourceError(
            f"the checkpoint lacks {len(absent)} weights of its configuration, first {absent[0]}"
        )
    complete_rules(model)
    return model.eval()


def write_decoder_weights(tensors: Mapping[str, Tensor], output: Path) -> None:
    """Write all weights but those of the vision tower and the projector, in their dtype, under
    transformers' names.

    A decoder derives every other precision from this file when it starts. The tensors are mapped
    from their shards: the copy takes page cache, no memory.
    """
    weights = {
        name: tensor.contiguous()
        for name, tensor in tensors.items()
        if not name.startswith(VISION_PREFIXES)
    }
    save_file(weights, output, metadata={"format": "pt"})
