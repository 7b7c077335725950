"""A family's model as training sees it.

Shapes: B images, Q sequences, T answer tokens, N image cells, A heads, C hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from export.training.batches import SequenceBatch
from export.training.examples import Language
from tasks.paligemma import MaskDecoder


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """What a model computed while it wrote the true answers of a batch."""

    logits: Tensor  # (Q, T, V)
    cell_states: Tensor  # (Q, N, C) of the cells after they have seen the prompt
    writer_states: Tensor  # (Q, T, C) of the writer of each token, before the last layer
    attentions: list[Tensor]  # of some layers (Q, A, T, N): from the writer of a token to the cells


class Trainee(Protocol):
    """A transformers model with its processor, and the parts of it that training tells apart."""

    model: Any  # Florence2ForConditionalGeneration or PaliGemmaForConditionalGeneration
    processor: Any
    location_ids: list[int]  # ids of the location tokens, by bin
    bins_per_px: float

    @property
    def vision_parts(self) -> list[nn.Module]:
        """The modules that make image features."""
        ...

    @property
    def language_model(self) -> Any:
        """BART or Gemma."""
        ...

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings (V, C), which are the output head too."""
        ...

    @property
    def position_tables(self) -> list[Tensor]:
        """Embeddings of rows and of columns of the image, where the family has them."""
        ...

    @property
    def quiet_layers(self) -> list[nn.Linear]:
        """Layers whose output starts small, so that what they are added to is not lost."""
        ...

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return all image tokens of uint8 `pixels` (B, H, W, 3)."""
        ...

    def cells(self, image_features: Tensor) -> Tensor:
        """Return those of the cells (B, N, C)."""
        ...

    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Read images and prompts and write the true answers; `image_features` are those of each sequence."""
        ...

    def to(self, device: str) -> Any:
        """Move the model."""
        ...


@dataclass(frozen=True, slots=True)
class FamilyParts:
    """What is a family's own in a run."""

    trainee: Trainee
    language: Language
    mask_decoder: MaskDecoder | None
