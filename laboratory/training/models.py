"""The two families in training: first weights, and the forward pass with attention weights.

Configuration, vocabulary and image processor are those of the committed checkpoint, models/ID.
Shapes: B images, Q sequences, N image cells, S prompt, T answer, C hidden, V vocabulary, A heads.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from export.artifacts.vision_module import VisionEncoderModule, read_image_input
from export.checks.reference import load_processor
from export.scenes import CANVAS_PX
from laboratory.training.examples import GRID, NO_TOKEN, Batch
from tasks.florence2 import grammar as florence2_grammar
from tasks.paligemma import grammar as paligemma_grammar
from tasks.table import Family

_Config: Any = AutoConfig  # transformers' factories have no types
_Model: Any = AutoModelForImageTextToText
_GenerationConfig: Any = GenerationConfig

_DEPTHWISE_GAIN = 0.3
_QUIET_GAIN = 0.1
_EMBEDDING_NORM = 1.2
_POSITION_STD = 0.05
_SMOOTH_DIMENSIONS = 32
_WAVELENGTHS = (24.0, 2000.0)  # bins
_MATCHING_LAYER = 3  # number of Gemma's layers after which the cells have attended to the prompt
_WRITING_LAYERS = (3, 4)  # Gemma's layers, from 0, in which a token's writer attends to its cells


@dataclass(frozen=True, slots=True)
class WrittenAnswers:
    """Outputs of a forward pass with the true answers of a batch."""

    logits: Tensor  # (Q, T, V) of each token
    cell_states: Tensor  # (Q, N, C) of the cells, after attention to the prompt
    attentions: list[Tensor]  # some layers' (Q, T, A, N): from each token's writer to the cells


class Trainee(nn.Module, ABC):
    """A transformers model with random weights, and access to its parts."""

    num_pooled = 0  # image tokens before the cells
    locations: ClassVar[Any]  # the family's module of location tokens
    bins_per_px: ClassVar[float]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = _Config.from_pretrained(folder)
        self.model = _Model.from_config(config, attn_implementation="eager", dtype=torch.float32)
        self.model.generation_config = _GenerationConfig.from_pretrained(folder)
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = map(self.locations.location_token, range(self.locations.NUM_BINS))
        self.location_ids = torch.tensor(list(map(vocabulary.token_to_id, tokens)))
        image_processor = load_processor(folder).image_processor
        self._vision = VisionEncoderModule(self.model, read_image_input(image_processor))
        self.initialize()

    @property
    def parts(self) -> dict[str, nn.Module]:
        model = self.model.model
        vision = nn.ModuleList([model.vision_tower, model.multi_modal_projector])
        return {"vision": vision, "language": model.language_model}

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings (V, C), tied to the output head."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw every weight from torch's random generator: scaled by fan-in, with location
        embeddings that are smooth along the axis.
        """
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                gain = _DEPTHWISE_GAIN if getattr(module, "groups", 1) > 1 else 1.0
                module.weight.normal_(0, gain / math.sqrt(module.weight[0].numel()))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, _POSITION_STD)
        size = self.embeddings.shape[1]
        self.embeddings.normal_(0, _EMBEDDING_NORM / math.sqrt(size))
        self.embeddings[self.location_ids] = smooth_embeddings(len(self.location_ids), size, 1.0)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return all image tokens (B, …, C) of uint8 `pixels` (B, H, W, 3)."""
        features: Tensor = self._vision(pixels)
        return features

    @abstractmethod
    def write(self, image_features: Tensor, batch: Batch) -> WrittenAnswers:
        """Run the model over images, prompts and answers; `image_features` are per sequence."""

    def _run(self, image_features: Tensor, token_ids: Tensor, **inputs: Tensor) -> Any:
        """Run the model over images and tokens (Q, S)."""
        embeds = self.model.get_input_embeddings()(token_ids)
        return self.model(
            inputs_embeds=torch.cat([image_features, embeds], dim=1),
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
            **inputs,
        )


class Florence2Trainee(Trainee):
    """A Florence-2 model in training."""

    num_pooled = 1  # their mean
    locations: ClassVar[Any] = florence2_grammar
    bins_per_px: ClassVar[float] = florence2_grammar.NUM_BINS / CANVAS_PX

    @torch.no_grad()
    def initialize(self) -> None:
        """Add quiet layers of the text encoder, whose norms after each addition would fade the
        image, and smooth embeddings of the image's rows and columns.
        """
        super().initialize()
        layers = self.language_model.encoder.layers
        for layer in layers:
            layer.self_attn.out_proj.weight.mul_(_QUIET_GAIN)
            layer.fc2.weight.mul_(_QUIET_GAIN)
        projector = self.model.model.multi_modal_projector.image_position_embed
        for table in (projector.row_embeddings.weight, projector.column_embeddings.weight):
            bins_apart = len(self.location_ids) / GRID
            table.copy_(smooth_embeddings(len(table), table.shape[1], bins_apart))

    def write(self, image_features: Tensor, batch: Batch) -> WrittenAnswers:
        num_image = image_features.shape[1]
        prompt_ids = batch["prompt_ids"]
        places = torch.arange(num_image + prompt_ids.shape[1], device=prompt_ids.device)
        mask = (places < num_image + batch["num_prompt"][:, None]).long()
        output = self._run(
            image_features, prompt_ids, attention_mask=mask, labels=batch["answer_ids"]
        )
        attentions = []
        for layer in output.cross_attentions:
            attentions.append(layer[..., self.num_pooled : num_image].transpose(1, 2))
        cell_states = output.encoder_last_hidden_state[:, self.num_pooled : num_image]
        return WrittenAnswers(output.logits, cell_states, attentions)


class PaliGemmaTrainee(Trainee):
    """A PaliGemma model in training.

    Gemma normalises before each layer, so that the residual stream does not fade.
    """

    locations: ClassVar[Any] = paligemma_grammar
    bins_per_px: ClassVar[float] = (paligemma_grammar.NUM_BINS - 1) / CANVAS_PX

    def write(self, image_features: Tensor, batch: Batch) -> WrittenAnswers:
        num_cells = image_features.shape[1]
        prompt_ids = batch["prompt_ids"]
        answer_ids = batch["answer_ids"]
        # Answers follow their prompts without a gap; padding is last.
        is_answer = answer_ids != NO_TOKEN
        num_prompt = batch["num_prompt"][:, None]
        num_tokens = num_prompt + is_answer.sum(dim=1, keepdim=True)
        token_ids = prompt_ids.new_zeros((len(num_tokens), int(num_tokens.max())))
        places = torch.arange(token_ids.shape[1], device=token_ids.device)
        is_prompt = places[: prompt_ids.shape[1]] < num_prompt
        token_ids[places < num_prompt] = prompt_ids[is_prompt]
        token_ids[(places >= num_prompt) & (places < num_tokens)] = answer_ids[is_answer]
        places = torch.arange(num_cells + len(places), device=token_ids.device)
        num_prefix = num_cells + num_prompt
        output = self._run(
            image_features,
            token_ids,
            attention_mask=(places < num_cells + num_tokens).long(),
            token_type_ids=(places >= num_prefix).long(),
            labels=torch.full((len(token_ids), len(places)), NO_TOKEN, device=token_ids.device),
        )
        steps = torch.arange(answer_ids.shape[1], device=token_ids.device)
        writers = (num_prefix - 1 + steps).clamp(max=len(places) - 1)  # (Q, T)
        rows = torch.arange(len(token_ids), device=token_ids.device)[:, None]
        attentions = []
        for layer in _WRITING_LAYERS:
            attention = output.attentions[layer].transpose(1, 2)[rows, writers]
            attentions.append(attention[..., :num_cells])
        cell_states = output.hidden_states[_MATCHING_LAYER][:, :num_cells]
        return WrittenAnswers(output.logits[rows, writers], cell_states, attentions)


TRAINEES: dict[Family, type[Florence2Trainee | PaliGemmaTrainee]] = {
    "florence2": Florence2Trainee,
    "paligemma": PaliGemmaTrainee,
}


def smooth_embeddings(num: int, size: int, bins_apart: float) -> Tensor:
    """Return (num, size): sines and cosines in a random subspace; neighbours are similar."""
    shortest, longest = map(math.log, _WAVELENGTHS)
    wavelengths = torch.linspace(shortest, longest, _SMOOTH_DIMENSIONS // 2).exp()
    phases = 2 * math.pi * torch.arange(num)[:, None] * bins_apart / wavelengths
    # (num, _SMOOTH_DIMENSIONS), norm sqrt(dimensions / 2)
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    basis, _ = torch.linalg.qr(torch.randn(size, _SMOOTH_DIMENSIONS))
    embeddings: Tensor = waves @ basis.T * (_EMBEDDING_NORM / math.sqrt(_SMOOTH_DIMENSIONS / 2))
    return embeddings
