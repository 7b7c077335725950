"""The two families in training: first weights, prompt and answer format, and the forward pass with
attention weights.

Configuration, vocabulary and image processor are those of the committed checkpoint, models/ID.
Shapes: B images, Q sequences, N image cells, S prompt or keys, T answer, C hidden, V vocabulary, A
heads, D head size.
"""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from export.artifacts.vision_module import VisionEncoderModule, read_image_input
from export.checks.reference import load_processor
from export.scenes import CANVAS_PX
from laboratory.training.answers import EncodeShape, florence2_answer, paligemma_answer
from laboratory.training.examples import GRID, NO_TOKEN, Batch, Language
from runners.tokens.text import PromptTokenizer
from tasks.catalog import CatalogEntry
from tasks.florence2 import grammar as florence2_grammar
from tasks.paligemma import grammar as paligemma_grammar

_Config: Any = AutoConfig  # transformers' factories have no types
_Model: Any = AutoModelForImageTextToText
_GenerationConfig: Any = GenerationConfig

_ATTENTION = "diptych_training"
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

    states: Tensor  # (Q, T, C) of each token's writer, which give its logits
    cell_states: Tensor  # (Q, N, C) of the cells, after attention to the prompt
    writer_states: Tensor  # (Q, T, C) of each token's writer, before the last layer
    attentions: list[Tensor]  # some layers' (Q, T, A, N): from each token's writer to the cells


class Trainee(nn.Module, ABC):
    """A transformers model with random weights, and access to its parts."""

    num_pooled = 0  # image tokens before the cells

    def __init__(self, folder: Path, locations: list[str], bins_per_px: float) -> None:
        super().__init__()
        config = _Config.from_pretrained(folder)
        self.model = _Model.from_config(config, attn_implementation=_ATTENTION, dtype=torch.float32)
        self.model.generation_config = _GenerationConfig.from_pretrained(folder)
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.location_ids = torch.tensor([vocabulary.token_to_id(token) for token in locations])
        self.bins_per_px = bins_per_px
        image_processor = load_processor(folder).image_processor
        self._vision = VisionEncoderModule(self.model, read_image_input(image_processor))
        initialize(self)

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

    def position_tables(self) -> list[Tensor]:
        """Return the embeddings of the image's rows and columns, if the family has any."""
        return []

    def quiet_layers(self) -> list[nn.Linear]:
        """Return layers whose output starts small, so that it does not drown the residual
        stream.
        """
        return []

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return all image tokens (B, …, C) of uint8 `pixels` (B, H, W, 3)."""
        features: Tensor = self._vision(pixels)
        return features

    @abstractmethod
    def write(self, image_features: Tensor, batch: Batch) -> WrittenAnswers:
        """Run the model over images, prompts and answers; `image_features` are per sequence."""


class Florence2Trainee(Trainee):
    """A Florence-2 model in training."""

    num_pooled = 1  # their mean

    def __init__(self, folder: Path) -> None:
        num_bins = florence2_grammar.NUM_BINS
        tokens = [florence2_grammar.location_token(index) for index in range(num_bins)]
        super().__init__(folder, tokens, num_bins / CANVAS_PX)

    def position_tables(self) -> list[Tensor]:
        table = self.model.model.multi_modal_projector.image_position_embed
        return [table.row_embeddings.weight, table.column_embeddings.weight]

    def quiet_layers(self) -> list[nn.Linear]:
        """Return the text encoder's outputs: its norms after each addition would fade the image."""
        layers = self.language_model.encoder.layers
        return [*(layer.self_attn.out_proj for layer in layers), *(layer.fc2 for layer in layers)]

    def write(self, image_features: Tensor, batch: Batch) -> WrittenAnswers:
        """Run BART's encoder over images and prompts, its decoder over answers."""
        bart = self.language_model
        config = self.model.config.text_config
        num_image = image_features.shape[1]
        embeds = torch.cat([image_features, bart.shared(batch["prompt_ids"])], dim=1)
        places = torch.arange(embeds.shape[1], device=embeds.device)
        mask = (places < num_image + batch["num_prompt"][:, None]).long()
        encoded = bart.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        answer_ids = batch["answer_ids"]
        start = torch.full_like(answer_ids[:, :1], config.decoder_start_token_id)
        previous = torch.cat([start, answer_ids[:, :-1]], dim=1)
        decoded = bart.decoder(
            input_ids=previous.masked_fill(previous == NO_TOKEN, config.pad_token_id),
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        attentions = []
        for layer in decoded.cross_attentions:
            attentions.append(layer[..., self.num_pooled : num_image].transpose(1, 2))
        return WrittenAnswers(
            decoded.last_hidden_state,
            encoded[:, self.num_pooled : num_image],
            decoded.hidden_states[-2],
            attentions,
        )


class PaliGemmaTrainee(Trainee):
    """A PaliGemma model in training.

    SigLIP has one table of cells instead of rows and columns. Gemma normalises before each layer,
    so that the residual stream does not fade: no layer is quiet.
    """

    def __init__(self, folder: Path) -> None:
        num_bins = paligemma_grammar.NUM_BINS
        tokens = [paligemma_grammar.location_token(index) for index in range(num_bins)]
        super().__init__(folder, tokens, (num_bins - 1) / CANVAS_PX)

    def write(self, image_features: Tensor, batch: Batch) -> WrittenAnswers:
        """Run Gemma over images, prompts and the true answers."""
        num_cells = image_features.shape[1]
        token_ids, num_tokens = _joined(batch, self.model.config.text_config.pad_token_id)
        embeds = torch.cat([image_features, self.model.get_input_embeddings()(token_ids)], dim=1)
        num_prefix = num_cells + batch["num_prompt"]
        num_sequences, length = embeds.shape[:2]
        positions = torch.arange(1, length + 1, device=embeds.device)
        hidden = self.language_model(
            inputs_embeds=embeds,
            attention_mask=_additive_mask(num_prefix, num_cells + num_tokens, length),
            position_ids=positions.expand(num_sequences, -1),
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        steps = torch.arange(batch["answer_ids"].shape[1], device=embeds.device)
        writers = (num_prefix[:, None] - 1 + steps).clamp(max=length - 1)  # (Q, T)
        rows = torch.arange(num_sequences, device=embeds.device)[:, None]
        attentions = []
        for layer in _WRITING_LAYERS:
            attention = hidden.attentions[layer].transpose(1, 2)[rows, writers]
            attentions.append(attention[..., :num_cells])
        return WrittenAnswers(
            hidden.last_hidden_state[rows, writers],
            hidden.hidden_states[_MATCHING_LAYER][:, :num_cells],
            hidden.hidden_states[-2][rows, writers],
            attentions,
        )


def _joined(batch: Batch, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts with answers, padded on the right (Q, S + T), and lengths (Q,)."""
    prompt_ids = batch["prompt_ids"]
    num_prompt = batch["num_prompt"][:, None]
    is_answer = batch["answer_ids"] != NO_TOKEN
    num_tokens = num_prompt + is_answer.sum(dim=1, keepdim=True)
    joined = prompt_ids.new_full((len(num_tokens), int(num_tokens.max())), pad_token_id)
    places = torch.arange(joined.shape[1], device=joined.device)
    is_prompt = places[: prompt_ids.shape[1]] < num_prompt
    joined[places < num_prompt] = prompt_ids[is_prompt]
    joined[(places >= num_prompt) & (places < num_tokens)] = batch["answer_ids"][is_answer]
    return joined, num_tokens[:, 0]


def _additive_mask(num_prefix: Tensor, num_tokens: Tensor, length: int) -> Tensor:
    """Return (Q, 1, length, length): 0 where a query attends, the lowest float32 elsewhere."""
    places = torch.arange(length, device=num_prefix.device)
    is_prefix = places[None, None, :] < num_prefix[:, None, None]
    is_before = places[None, None, :] <= places[None, :, None]
    is_visible = (is_prefix | is_before) & (places[None, None, :] < num_tokens[:, None, None])
    mask = torch.zeros(is_visible.shape, device=num_prefix.device)
    return mask.masked_fill(~is_visible, torch.finfo(torch.float32).min)[:, None]


def make_trainee(entry: CatalogEntry, folder: Path) -> Trainee:
    """Return the untrained model of an entry's family."""
    is_florence2 = entry.family == "florence2"
    return Florence2Trainee(folder) if is_florence2 else PaliGemmaTrainee(folder)


def make_language(entry: CatalogEntry, folder: Path, encode_shape: EncodeShape) -> Language:
    r"""Return the family's formats: prompts `<s> … </s>` and answers `<s> … </s>` of Florence-2,
    prompts `<bos> … \n` and answers `… <eos>` of PaliGemma.
    """
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    rules = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    bos = (int(rules["bos_token_id"]),)
    eos = (int(rules["eos_token_id"]),)
    prompts = PromptTokenizer.load(file)
    if entry.family == "florence2":
        return Language(entry, tokenizer, prompts, bos, eos, bos, eos, florence2_answer)
    newline = tuple(tokenizer.encode("\n", add_special_tokens=False).ids)
    write_answer = partial(paligemma_answer, encode_shape)
    return Language(entry, tokenizer, prompts, bos, newline, (), eos, write_answer)


@torch.no_grad()
def initialize(trainee: Trainee) -> None:
    """Initialise every weight from torch's random generator: scaled by fan-in, with location
    embeddings that are smooth along the axis.
    """
    for module in trainee.model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = _DEPTHWISE_GAIN if getattr(module, "groups", 1) > 1 else 1.0
            module.weight.normal_(0, gain / math.sqrt(module.weight[0].numel()))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, _POSITION_STD)
    embeddings = trainee.embeddings
    num_bins = len(trainee.location_ids)
    size = embeddings.shape[1]
    embeddings.normal_(0, _EMBEDDING_NORM / math.sqrt(size))
    embeddings[trainee.location_ids] = smooth_embeddings(num_bins, size, 1.0)
    for layer in trainee.quiet_layers():
        layer.weight.mul_(_QUIET_GAIN)
    for table in trainee.position_tables():  # rows and columns of cells, in bins
        table.copy_(smooth_embeddings(len(table), table.shape[1], num_bins / GRID))


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


def training_attention(
    module: nn.Module,  # noqa: ARG001  # transformers' interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return attended values (Q, T, A, D) and weights (Q, A, T, S); heads do not share keys.

    transformers' eager attention computes the softmax in float32, which takes half of a bfloat16
    step on a CPU.
    """
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores += attention_mask.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(_ATTENTION, training_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
