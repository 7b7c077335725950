"""The image features and prompts of a batch as tensors, prompts padded on the right. The same for both families."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runners.decoder.sequences import SequenceRequest


@dataclass(frozen=True, slots=True)
class BatchInputs:
    """What a prefill reads. B batch, N image tokens, S longest prompt, C hidden."""

    image_features: Tensor  # (B, N, C)
    prompt_ids: Tensor  # (B, S), padded
    num_read: Tensor  # (B,) tokens of image and prompt, without padding


def stack_inputs(
    requests: Sequence[SequenceRequest], pad_token_id: int, device: torch.device, dtype: torch.dtype
) -> BatchInputs:
    """Return the inputs of a batch on `device`, features in `dtype`."""
    features = torch.stack([request.image_features for request in requests]).to(device, dtype)
    prompts = [torch.tensor(request.prompt_ids) for request in requests]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=pad_token_id)
    num_read = torch.tensor([features.shape[1] + len(prompt) for prompt in prompts], device=device)
    return BatchInputs(features, padded.to(device), num_read)
