"""The work of a model, from its checkpoint's configuration: operations of an image, bytes of a
decode step.

The model is built without weights on torch's meta device. torch counts the operations of matrix
products and convolutions; one multiplication and one addition are two operations. Nothing is
computed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

_Config: Any = AutoConfig  # transformers' factories have no types
_Model: Any = AutoModelForImageTextToText
_Processor: Any = AutoProcessor

# BART's decoder computes these once for a prompt, not in every step.
_ONCE = ("encoder_attn.k_proj", "encoder_attn.v_proj")


@dataclass(frozen=True, slots=True)
class Operations:
    """The work of one image and of one decode step."""

    encoder_operations: int  # per image, including the projector
    step_weights: int  # weights that one decode step reads, whatever the batch
    numbers_per_position: int  # keys and values that a step reads for each earlier token
    num_image_tokens: int

    def step_bytes(self, bytes_per_weight: int, num_positions: float) -> float:
        """Return the bytes that a step of one sequence reads; keys and values are float32."""
        return self.step_weights * bytes_per_weight + 4 * self.numbers_per_position * num_positions


def count_operations(checkpoint: Path) -> Operations:
    config = _Config.from_pretrained(checkpoint, local_files_only=True)
    processor = _Processor.from_pretrained(checkpoint, local_files_only=True)
    with torch.device("meta"):
        model = _Model.from_config(config, attn_implementation="eager").eval()
    size = dict(processor.image_processor.size)
    pixel_values = torch.empty(1, 3, size["height"], size["width"], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.get_image_features(pixel_values)
    return Operations(
        encoder_operations=int(counter.get_total_flops()),
        step_weights=_step_weights(model),
        numbers_per_position=_numbers_per_position(config.get_text_config()),
        num_image_tokens=int(processor.image_processor.image_seq_length),
    )


def _step_weights(model: Any) -> int:
    """Return the number of weights of the decoder's layers and its head, the embedding."""
    language_model = model.model.language_model
    layers = getattr(language_model, "decoder", language_model).layers
    num_weights = model.lm_head.weight.numel()
    for name, parameter in layers.named_parameters():
        if not any(part in name for part in _ONCE):
            num_weights += parameter.numel()
    return int(num_weights)


def _numbers_per_position(config: Any) -> int:
    """Return the size of a token's keys and values in all layers; BART's cross-attention costs as
    much as its own.
    """
    if config.model_type == "bart":
        return int(2 * config.decoder_layers * config.d_model)
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim)
