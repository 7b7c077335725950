"""Attention that keeps its weights, as the attention losses need them, in the precision that a run computes in.

transformers' eager attention goes through float32 for the softmax, which in bfloat16 is half of a step on a CPU.
Shapes: B batch, A heads, T queries, S keys, D head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

TRAINING_ATTENTION = "diptych_training"


def training_attention(
    module: nn.Module,  # noqa: ARG001  # transformers' interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return the attended values (B, T, A, D) and the weights (B, A, T, S); every head has keys of its own."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(TRAINING_ATTENTION, training_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TRAINING_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
