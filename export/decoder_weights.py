"""The decoder's weights: every tensor of a checkpoint but the vision tower and the projector, each once."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

_VISION_PREFIXES = ("model.vision_tower.", "model.multi_modal_projector.")


def write_decoder_weights(model: Any, output: Path) -> None:
    """Write the decoder of a transformers model, in the dtype that it has and under transformers' current names.

    Loaded as it is stored, it is written as it is stored: every precision is made of that, at the start of a decoder.

    A tensor tied to another (the output head to the embedding) is left out: who loads the other has it.
    """
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(_VISION_PREFIXES) and name not in model.all_tied_weights_keys
    }
    save_file(weights, output, metadata={"format": "pt"})
