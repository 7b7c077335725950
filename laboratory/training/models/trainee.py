"""A model in training: what both families share, and attention that returns its weights.

transformers' eager attention computes the softmax in float32, which takes half of a bfloat16 step
on a CPU. Shapes: B images, Q sequences, T answer tokens or queries, S keys, N image cells, A heads,
D head size, C hidden, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, GenerationConfig, PreTrainedTokenizerFast
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from export.artifacts.vision_module import VisionEncoderModule, read_image_input
from laboratory.training.data.batches import SequenceBatch
from laboratory.training.data.examples import Language
from laboratory.training.data.tokenizers import IMAGE_TOKEN
from tasks.paligemma import MaskDecoder

_Tokenizer: Any = PreTrainedTokenizerFast  # transformers' classes have no types
_GenerationConfig: Any = GenerationConfig

TRAINING_ATTENTION = "diptych_training"
_GROUP_SEQUENCES = 12  # padded to the longest of their answers


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Outputs of a forward pass with the true answers of a batch.

    The writer of a token is the decoder position that predicts it.
    """

    states: Tensor  # (Q, T, C) of each token's writer, which give its logits
    cell_states: Tensor  # (Q, N, C) of the cells, after attention to the prompt
    writer_states: Tensor  # (Q, T, C) of each token's writer, before the last layer
    attentions: list[Tensor]  # some layers' (Q, T, A, N): from each token's writer to the cells


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The dimensions of a model; `vision_` ones are of DaViT's stages or of SigLIP."""

    image_px: int
    grid: int  # cells in a row
    hidden_size: int
    feed_forward_size: int
    num_layers: int  # BART's encoder and its decoder each, or Gemma
    vision_sizes: tuple[int, ...]
    vision_depths: tuple[int, ...]
    num_positions: int
    max_new_tokens: int

    @property
    def num_cells(self) -> int:
        """Number of cells: image tokens without pooled ones."""
        return self.grid * self.grid


class Trainee(nn.Module, ABC):
    """A transformers model with its processor, and access to its parts."""

    num_pooled = 0  # image tokens before the cells

    def __init__(
        self,
        size: ModelSize,
        model: Any,
        processor: Any,
        location_ids: list[int],
        bins_per_px: float,
    ) -> None:
        super().__init__()
        self.size = size
        self.model = model  # Florence2ForConditionalGeneration or PaliGemmaForConditionalGeneration
        self.processor = processor
        self.location_ids = location_ids  # ids of the location tokens, by bin
        self.bins_per_px = bins_per_px
        self._vision = VisionEncoderModule(model, read_image_input(processor.image_processor))

    @property
    def vision_parts(self) -> list[nn.Module]:
        """Vision tower and projector."""
        return [self.model.model.vision_tower, self.model.model.multi_modal_projector]

    @property
    def language_model(self) -> Any:
        """BART or Gemma."""
        return self.model.model.language_model

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings (V, C), tied to the output head."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def position_tables(self) -> list[Tensor]:
        """Embeddings of the image's rows and columns; empty if the family has none."""
        return []

    @property
    def quiet_layers(self) -> list[nn.Linear]:
        """Layers whose output starts small, so that it does not drown the residual stream."""
        return []

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return all image tokens of uint8 `pixels` (B, H, W, 3)."""
        features: Tensor = self._vision(pixels)
        return features

    def cells(self, image_features: Tensor) -> Tensor:
        """Return the image tokens of the cells (B, N, C)."""
        return image_features[:, self.num_pooled :]

    def write_by_length(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run `write` on groups of a batch sorted by length; `image_features` are per image.

        One long answer among short ones would make most of the decoder's input padding.
        """
        num_groups = max(1, len(batch.ranks) // _GROUP_SEQUENCES)
        written = [
            self.write(image_features[group.image_index], group)
            for group in batch.groups(num_groups)
        ]
        layers = zip(*(each.attentions for each in written), strict=True)
        return WrittenAnswers(
            states=_joined([each.states for each in written]),
            cell_states=_joined([each.cell_states for each in written]),
            writer_states=_joined([each.writer_states for each in written]),
            attentions=[_joined(layer) for layer in layers],
        )

    @abstractmethod
    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run the model over images, prompts and answers; `image_features` are per sequence."""


def _joined(groups: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors (Q, T, …), padded to the largest T."""
    longest = max(group.shape[1] for group in groups)
    padded = []
    for group in groups:
        after_last = (0, 0) * (group.ndim - 2)
        padded.append(pad(group, (*after_last, 0, longest - group.shape[1])))
    return torch.cat(padded)


def untrained(model_class: Any, config: Any, rules: Mapping[str, Any], max_new_tokens: int) -> Any:
    """Return a model with the rules of its answers, and weights that `initialize` replaces."""
    model = model_class._from_config(config, attn_implementation=TRAINING_ATTENTION)
    model.generation_config = _GenerationConfig(**rules, max_new_tokens=max_new_tokens)
    return model


def fast_tokenizer(
    tokenizer: Tokenizer, bos: str, eos: str, options: Mapping[str, str] | None = None
) -> Any:
    """Return transformers' tokenizer, for a checkpoint's processor."""
    return _Tokenizer(
        tokenizer_object=tokenizer,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        model_max_length=1024,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        pad_token="<pad>",
        **(options or {}),
    )


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
        scores += attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(TRAINING_ATTENTION, training_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TRAINING_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
