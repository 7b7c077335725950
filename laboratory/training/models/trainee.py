"""A model in training: the interface of both families, and attention that returns its weights.

transformers' eager attention computes the softmax in float32, which takes half of a bfloat16 step
on a CPU. Shapes: B images, Q sequences, T answer tokens or queries, S keys, N image cells, A heads,
D head size, C hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from laboratory.training.data.batches import SequenceBatch
from laboratory.training.data.examples import Language
from tasks.paligemma import MaskDecoder

MAX_NEW_TOKENS = 128
TRAINING_ATTENTION = "diptych_training"


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Outputs of a forward pass with the true answers of a batch.

    The writer of a token is the decoder position that predicts it.
    """

    logits: Tensor  # (Q, T, V)
    cell_states: Tensor  # (Q, N, C) of the cells, after attention to the prompt
    writer_states: Tensor  # (Q, T, C) of each token's writer, before the last layer
    attentions: list[Tensor]  # some layers' (Q, A, T, N): from each token's writer to the cells


class Trainee(Protocol):
    """A transformers model with its processor, and access to its parts."""

    model: Any  # Florence2ForConditionalGeneration or PaliGemmaForConditionalGeneration
    processor: Any
    location_ids: list[int]  # ids of the location tokens, by bin
    bins_per_px: float

    @property
    def vision_parts(self) -> list[nn.Module]:
        """Vision tower and projector."""
        ...

    @property
    def language_model(self) -> Any:
        """BART or Gemma."""
        ...

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings (V, C), tied to the output head."""
        ...

    @property
    def position_tables(self) -> list[Tensor]:
        """Embeddings of the image's rows and columns; empty if the family has none."""
        ...

    @property
    def quiet_layers(self) -> list[nn.Linear]:
        """Layers whose output starts small, so that it does not drown the residual stream."""
        ...

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return all image tokens of uint8 `pixels` (B, H, W, 3)."""
        ...

    def cells(self, image_features: Tensor) -> Tensor:
        """Return the image tokens of the cells (B, N, C)."""
        ...

    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run the model over images, prompts and answers; `image_features` are per sequence."""
        ...

    def to(self, device: str) -> Any:
        """Move the model."""
        ...


@dataclass(frozen=True, slots=True)
class FamilyParts:
    """A model in training, with its family's vocabulary and formats."""

    trainee: Trainee
    language: Language
    mask_decoder: MaskDecoder | None


def training_attention(
    module: nn.Module,  # noqa: ARG001  # transformers' interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return attended values (Q, T, A, D) and weights (Q, A, T, S); heads do not share keys."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(TRAINING_ATTENTION, training_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TRAINING_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
