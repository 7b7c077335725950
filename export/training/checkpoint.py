"""Writes a trained model as a Hugging Face folder that `AutoProcessor` and `from_pretrained` load."""

import copy
from pathlib import Path
from typing import Any

import torch


def write_checkpoint(trainee: Any, folder: Path) -> None:
    """Write weights in half precision, configuration, generation rules, tokenizer and image processor."""
    model = copy.deepcopy(trainee.model).to("cpu", torch.float16)
    model.save_pretrained(folder)
    trainee.processor.save_pretrained(folder)
