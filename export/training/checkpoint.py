"""A trained model as a Hugging Face folder, which `AutoProcessor` and `from_pretrained` load."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types


def write_checkpoint(trainee: Any, folder: Path) -> None:
    """Write weights in half precision, configuration, generation rules, tokenizer and image processor."""
    model = copy.deepcopy(trainee.model).to("cpu", torch.float16)
    model.save_pretrained(folder)
    trainee.processor.save_pretrained(folder)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights in float32, by the names of the model's state."""
    model: nn.Module = _Model.from_pretrained(folder, dtype=torch.float32)
    return model.state_dict()
