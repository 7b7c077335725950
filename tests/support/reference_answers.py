"""Answers of the reference to single prompts, by greedy or beam search."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from export.checks.reference import Reference


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """The output of transformers' `generate`, end token included."""

    token_ids: tuple[int, ...]
    logits: Tensor  # (T, V) float32, after the checkpoint's generation rules; empty with beams
    score: float | None = None  # best beam's, as `generate` ranks them; None without beams


@torch.inference_mode()
def reference_answer(
    reference: Reference,
    text: str,
    image: Image.Image,
    image_features: Tensor,
    max_new_tokens: int,
    num_beams: int = 1,
) -> ReferenceAnswer:
    """Answer a prompt; `image_features` (N, C) are `image`'s."""
    inputs = reference.inputs([text], [image])
    output = reference.model.generate(
        **reference.arguments(inputs, image_features[None], max_new_tokens),
        num_beams=num_beams,
        output_scores=True,
        return_dict_in_generate=True,
    )
    token_ids = tuple(output.sequences[0, reference.num_prompt_tokens(inputs) :].tolist())
    if num_beams > 1:
        return ReferenceAnswer(token_ids, torch.empty(0), float(output.sequences_scores[0]))
    return ReferenceAnswer(token_ids, torch.cat(output.scores).float())
