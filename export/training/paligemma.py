"""PaliGemma in training: its configuration, its vocabulary around prompts and answers, one pass with attention.

Shapes: B images, Q sequences, N image cells, S prompt, T answer, C hidden, V vocabulary, A heads.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from export.scenes.scene import CANVAS_PX
from export.training.attention import TRAINING_ATTENTION
from export.training.batches import NO_TOKEN, SequenceBatch
from export.training.cell_targets import CELL_PX, NUM_CELLS
from export.training.examples import AnswerWriter, Language
from export.training.mask_autoencoder import MaskAutoencoder
from export.training.mask_training import shape_codes
from export.training.paligemma_answers import PaliGemmaAnswers
from export.training.tokenizers import IMAGE_TOKEN, padded_size, paligemma_tokenizer, plain_and_control, token_id
from export.training.trainee import FamilyParts, WrittenAnswers
from export.vision import VisionEncoderModule, read_image_input
from tasks.catalog import CatalogEntry
from tasks.paligemma import MaskDecoder
from tasks.paligemma.locations import NUM_BINS, location_token

_Model: Any = PaliGemmaForConditionalGeneration  # what is untyped in transformers
_Processor: Any = PaliGemmaProcessor
_Tokenizer: Any = PreTrainedTokenizerFast
_GenerationConfig: Any = GenerationConfig

HIDDEN_SIZE = 128
VISION_HIDDEN_SIZE = 192  # a patch of 16 px goes through one matrix: fewer numbers would lose its characters
MAX_NEW_TOKENS = 128
_MATCHING_LAYER = 3  # after so many of Gemma's layers the cells know what the prompt asks for
_WRITING_LAYERS = (3, 4)  # layers, from 0, in which the writer of a token looks at its cells
_SPECIAL_IDS = {"bos_token_id": "<bos>", "eos_token_id": "<eos>", "pad_token_id": "<pad>"}


def make_parts(entry: CatalogEntry, mask_file: Path) -> FamilyParts:
    """Return an untrained model and the language that it is to learn; masks are those of the autoencoder's file."""
    tokenizer = paligemma_tokenizer(entry)
    writer = PaliGemmaAnswers(shape_codes(MaskAutoencoder.load_npz(mask_file)))
    language = make_language(entry, tokenizer, writer.answer_pieces)
    return FamilyParts(PaliGemmaTrainee(tokenizer), language, MaskDecoder.load(mask_file))


def make_language(entry: CatalogEntry, tokenizer: Tokenizer, write_answer: AnswerWriter) -> Language:
    r"""Return the prompts `<bos> … \n` and answers `… <eos>` of the family."""
    bos, eos = token_id(tokenizer, "<bos>"), token_id(tokenizer, "<eos>")
    newline = tuple(tokenizer.encode("\n", add_special_tokens=False).ids)
    return Language(entry, tokenizer, plain_and_control(tokenizer), (bos,), newline, (), (eos,), write_answer)


def make_processor(tokenizer: Tokenizer) -> Any:
    """Return the processor that belongs to the checkpoint."""
    image_processor: Any = SiglipImageProcessor(
        size={"height": CANVAS_PX, "width": CANVAS_PX}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    image_processor.image_seq_length = NUM_CELLS
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    fast = _Tokenizer(
        tokenizer_object=tokenizer,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=1024,
        **names,
    )
    return _Processor(image_processor, fast)


def make_config(tokenizer: Tokenizer) -> PaliGemmaConfig:
    """Return a small PaliGemma: 12 × 12 image tokens of 16 px, SigLIP of four layers and Gemma of five."""
    ids: dict[str, Any] = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
    text_config: dict[str, Any] = {
        "model_type": "gemma",
        "vocab_size": padded_size(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "num_image_tokens": NUM_CELLS,
        **ids,
    }
    vision_config = {
        "model_type": "siglip_vision_model",
        "image_size": CANVAS_PX,
        "patch_size": round(CELL_PX),
        "hidden_size": VISION_HIDDEN_SIZE,
        "intermediate_size": 4 * VISION_HIDDEN_SIZE,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "vision_use_head": False,
    }
    return PaliGemmaConfig(
        text_config=text_config,
        vision_config=vision_config,
        projection_dim=HIDDEN_SIZE,
        hidden_size=HIDDEN_SIZE,
        image_token_index=token_id(tokenizer, IMAGE_TOKEN),
        **ids,
    )


class PaliGemmaTrainee(nn.Module):
    """A PaliGemma model as the training loop sees it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model: Any = _Model._from_config(make_config(tokenizer), attn_implementation=TRAINING_ATTENTION)
        ids = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
        self.model.generation_config = _GenerationConfig(**ids, max_new_tokens=MAX_NEW_TOKENS)
        self.processor = make_processor(tokenizer)
        self.location_ids = [token_id(tokenizer, location_token(index)) for index in range(NUM_BINS)]
        self.bins_per_px = (NUM_BINS - 1) / CANVAS_PX
        self._vision = VisionEncoderModule(self.model, read_image_input(self.processor.image_processor))

    @property
    def vision_parts(self) -> list[nn.Module]:
        """The modules that make image features."""
        return [self.model.model.vision_tower, self.model.model.multi_modal_projector]

    @property
    def language_model(self) -> Any:
        """Gemma."""
        return self.model.model.language_model

    @property
    def embeddings(self) -> Tensor:
        """Token embeddings (V, C), which are the output head too."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def position_tables(self) -> list[Tensor]:
        """Embeddings of rows and of columns of the image: SigLIP has one table of cells instead."""
        return []

    @property
    def quiet_layers(self) -> list[nn.Linear]:
        """None: Gemma norms before each layer, and nothing fades."""
        return []

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return the image tokens (B, N, C) of uint8 `pixels`."""
        features: Tensor = self._vision(pixels)
        return features

    def cells(self, image_features: Tensor) -> Tensor:
        """Return those of the cells (B, N, C): all."""
        return image_features

    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run Gemma over images, prompts and the true answers; `image_features` (Q, N, C)."""
        token_ids, num_tokens = _joined(batch, self.model.config.text_config.pad_token_id)
        embeds = torch.cat([image_features, self.model.get_input_embeddings()(token_ids)], dim=1)
        num_prefix = NUM_CELLS + batch.num_prompt
        hidden = self.language_model(
            inputs_embeds=embeds,
            attention_mask=_additive_mask(num_prefix, NUM_CELLS + num_tokens, embeds.shape[1]),
            position_ids=torch.arange(1, embeds.shape[1] + 1, device=embeds.device).expand(len(embeds), -1),
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        steps = torch.arange(batch.answer_ids.shape[1], device=embeds.device)
        writers = (num_prefix[:, None] - 1 + steps).clamp(max=embeds.shape[1] - 1)  # (Q, T) who writes each token
        rows = torch.arange(len(embeds), device=embeds.device)[:, None]
        return WrittenAnswers(
            logits=hidden.last_hidden_state[rows, writers] @ self.embeddings.T,
            cell_states=hidden.hidden_states[_MATCHING_LAYER][:, :NUM_CELLS],
            writer_states=hidden.hidden_states[-2][rows, writers],
            attentions=[
                hidden.attentions[layer].transpose(1, 2)[rows, writers].transpose(1, 2)[..., :NUM_CELLS]
                for layer in _WRITING_LAYERS
            ],
        )


def _joined(batch: SequenceBatch, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return each prompt followed at once by its answer, padded on the right (Q, S + T), and their lengths (Q,)."""
    is_answer = batch.answer_ids != NO_TOKEN
    num_tokens = batch.num_prompt + is_answer.sum(dim=1)
    joined = batch.answer_ids.new_full((len(num_tokens), int(num_tokens.max())), pad_token_id)
    places = torch.arange(joined.shape[1], device=joined.device)
    is_prompt = places[: batch.prompt_ids.shape[1]] < batch.num_prompt[:, None]
    joined[places < batch.num_prompt[:, None]] = batch.prompt_ids[is_prompt]
    joined[(places >= batch.num_prompt[:, None]) & (places < num_tokens[:, None])] = batch.answer_ids[is_answer]
    return joined, num_tokens


def _additive_mask(num_prefix: Tensor, num_tokens: Tensor, length: int) -> Tensor:
    """Return (Q, 1, length, length): 0 where a query sees a key, the lowest number elsewhere."""
    places = torch.arange(length, device=num_prefix.device)
    is_prefix = places[None, None, :] < num_prefix[:, None, None]
    is_before = places[None, None, :] <= places[None, :, None]
    is_visible = (is_prefix | is_before) & (places[None, None, :] < num_tokens[:, None, None])
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(is_visible.shape, device=num_prefix.device).masked_fill(~is_visible, lowest)[:, None]
