"""PaliGemma in training: configuration, prompt and answer format, forward pass with attention
weights.

Shapes: B images, Q sequences, N image cells, S prompt, T answer, C hidden, V vocabulary, A heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)

from export.scenes.scene import CANVAS_PX
from laboratory.training.data.batches import NO_TOKEN, SequenceBatch
from laboratory.training.data.cell_targets import CELL_PX, NUM_CELLS
from laboratory.training.data.examples import AnswerWriter, Language
from laboratory.training.data.paligemma_answers import PaliGemmaAnswers
from laboratory.training.data.tokenizers import (
    IMAGE_TOKEN,
    padded_size,
    paligemma_tokenizer,
    prompt_tokenizer,
    token_id,
)
from laboratory.training.models.trainee import (
    FamilyParts,
    Trainee,
    WrittenAnswers,
    fast_tokenizer,
    untrained,
)
from tasks.catalog import CatalogEntry
from tasks.paligemma import MaskDecoder
from tasks.paligemma.locations import NUM_BINS, location_token

_Processor: Any = PaliGemmaProcessor  # transformers' classes have no types

HIDDEN_SIZE = 128
# a patch of 16 px is one linear projection: a smaller size would lose its characters
VISION_HIDDEN_SIZE = 192
_MATCHING_LAYER = 3  # number of Gemma's layers after which the cells have attended to the prompt
_WRITING_LAYERS = (3, 4)  # layers, from 0, in which a token's writer attends to its cells
_SPECIAL_IDS = {"bos_token_id": "<bos>", "eos_token_id": "<eos>", "pad_token_id": "<pad>"}


def make_parts(
    entry: CatalogEntry, shape_codes: Mapping[str, tuple[int, ...]], mask_decoder: MaskDecoder
) -> FamilyParts:
    """Return an untrained model with its formats; masks are written as their shape's codes."""
    tokenizer = paligemma_tokenizer(entry)
    language = make_language(entry, tokenizer, PaliGemmaAnswers(shape_codes).answer_pieces)
    return FamilyParts(PaliGemmaTrainee(tokenizer), language, mask_decoder)


def make_language(
    entry: CatalogEntry, tokenizer: Tokenizer, write_answer: AnswerWriter
) -> Language:
    r"""Return the family's formats: prompts `<bos> … \n` and answers `… <eos>`."""
    bos = token_id(tokenizer, "<bos>")
    eos = token_id(tokenizer, "<eos>")
    newline = tuple(tokenizer.encode("\n", add_special_tokens=False).ids)
    return Language(
        entry, tokenizer, prompt_tokenizer(tokenizer), (bos,), newline, (), (eos,), write_answer
    )


def make_processor(tokenizer: Tokenizer) -> Any:
    """Return the checkpoint's processor."""
    image_processor: Any = SiglipImageProcessor(
        size={"height": CANVAS_PX, "width": CANVAS_PX}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    image_processor.image_seq_length = NUM_CELLS
    fast = fast_tokenizer(tokenizer, "<bos>", "<eos>", {"padding_side": "left"})
    return _Processor(image_processor, fast)


def make_config(tokenizer: Tokenizer) -> PaliGemmaConfig:
    """Return a small PaliGemma: 12 × 12 tokens of 16 px, SigLIP of 4 layers, Gemma of 5."""
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


class PaliGemmaTrainee(Trainee):
    """A PaliGemma model in training.

    SigLIP has one table of cells instead of rows and columns. Gemma normalises before each layer,
    so that the residual stream does not fade: no layer is quiet.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
        super().__init__(
            untrained(PaliGemmaForConditionalGeneration, make_config(tokenizer), ids),
            make_processor(tokenizer),
            [token_id(tokenizer, location_token(index)) for index in range(NUM_BINS)],
            (NUM_BINS - 1) / CANVAS_PX,
        )

    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run Gemma over images, prompts and the true answers; `image_features` (Q, N, C)."""
        token_ids, num_tokens = _joined(batch, self.model.config.text_config.pad_token_id)
        embeds = torch.cat([image_features, self.model.get_input_embeddings()(token_ids)], dim=1)
        num_prefix = NUM_CELLS + batch.num_prompt
        hidden = self.language_model(
            inputs_embeds=embeds,
            attention_mask=_additive_mask(num_prefix, NUM_CELLS + num_tokens, embeds.shape[1]),
            position_ids=torch.arange(1, embeds.shape[1] + 1, device=embeds.device).expand(
                len(embeds), -1
            ),
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        steps = torch.arange(batch.answer_ids.shape[1], device=embeds.device)
        writers = (num_prefix[:, None] - 1 + steps).clamp(max=embeds.shape[1] - 1)  # (Q, T)
        rows = torch.arange(len(embeds), device=embeds.device)[:, None]
        return WrittenAnswers(
            logits=hidden.last_hidden_state[rows, writers] @ self.embeddings.T,
            cell_states=hidden.hidden_states[_MATCHING_LAYER][:, :NUM_CELLS],
            writer_states=hidden.hidden_states[-2][rows, writers],
            attentions=[
                hidden.attentions[layer]
                .transpose(1, 2)[rows, writers]
                .transpose(1, 2)[..., :NUM_CELLS]
                for layer in _WRITING_LAYERS
            ],
        )


def _joined(batch: SequenceBatch, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return prompts with answers, padded on the right (Q, S + T), and lengths (Q,)."""
    is_answer = batch.answer_ids != NO_TOKEN
    num_tokens = batch.num_prompt + is_answer.sum(dim=1)
    joined = batch.answer_ids.new_full((len(num_tokens), int(num_tokens.max())), pad_token_id)
    places = torch.arange(joined.shape[1], device=joined.device)
    is_prompt = places[: batch.prompt_ids.shape[1]] < batch.num_prompt[:, None]
    joined[places < batch.num_prompt[:, None]] = batch.prompt_ids[is_prompt]
    joined[(places >= batch.num_prompt[:, None]) & (places < num_tokens[:, None])] = (
        batch.answer_ids[is_answer]
    )
    return joined, num_tokens


def _additive_mask(num_prefix: Tensor, num_tokens: Tensor, length: int) -> Tensor:
    """Return (Q, 1, length, length): 0 where a query attends, the lowest float32 elsewhere."""
    places = torch.arange(length, device=num_prefix.device)
    is_prefix = places[None, None, :] < num_prefix[:, None, None]
    is_before = places[None, None, :] <= places[None, :, None]
    is_visible = (is_prefix | is_before) & (places[None, None, :] < num_tokens[:, None, None])
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(is_visible.shape, device=num_prefix.device).masked_fill(~is_visible, lowest)[
        :, None
    ]
