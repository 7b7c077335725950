"""Load a decoder's weights into transformers' language model, straight to the dtype they run in."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from runners.artifacts import DECODER_FILE, Precision

_PREFIX = "model.language_model."  # of the language model in Florence-2's and PaliGemma's checkpoints
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_language_model(
    model_class: Any, config: Any, folder: Path, prefix: str, precision: Precision, device: str
) -> Any:
    """Return an instance of `model_class` with the artifact's weights, in evaluation mode.

    `prefix` stands in the names of `model_class` where the checkpoint has `model.language_model.`. Gemma 2 caps
    attention scores, which transformers' SDPA path leaves out: it runs eagerly.
    """
    dtype = _DTYPES[precision]
    with safe_open(folder / DECODER_FILE, framework="pt") as file:
        state_dict = {
            name.replace(_PREFIX, prefix, 1): file.get_tensor(name).to(dtype)
            for name in file.keys()  # noqa: SIM118 (not a dict)
        }
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    model = model_class.from_pretrained(
        None, config=config, state_dict=state_dict, dtype=dtype, attn_implementation=attention
    )
    return model.to(device).eval()
