"""PaliGemma in training: configuration, prompt and answer format, forward pass with attention
weights.

Shapes: B images, Q sequences, N image cells, S prompt, T answer, C hidden, V vocabulary, A heads.
"""

from collections.abc import Callable
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

from export.scenes import CANVAS_PX
from laboratory.training.data.batches import NO_TOKEN, SequenceBatch
from laboratory.training.data.examples import AnswerWriter, Language
from laboratory.training.data.mask_samples import Masks
from laboratory.training.data.paligemma_answers import PaliGemmaAnswers
from laboratory.training.data.tokenizers import (
    IMAGE_TOKEN,
    padded_size,
    prompt_tokenizer,
    token_id,
)
from laboratory.training.models.trainee import (
    FamilyParts,
    ModelSize,
    Trainee,
    WrittenAnswers,
    fast_tokenizer,
    untrained,
)
from tasks.catalog import CatalogEntry
from tasks.paligemma import MaskDecoder
from tasks.paligemma.locations import NUM_BINS, location_token

_Processor: Any = PaliGemmaProcessor  # transformers' classes have no types

# A patch of 16 px is one linear projection: a smaller vision size would lose its characters.
MINI = ModelSize(
    image_px=192,
    grid=12,
    hidden_size=128,
    feed_forward_size=256,
    num_layers=5,
    vision_sizes=(192,),
    vision_depths=(4,),
    num_positions=512,
    max_new_tokens=128,
)
_NUM_HEADS = 4
_MATCHING_LAYER = 3  # number of Gemma's layers after which the cells have attended to the prompt
_WRITING_LAYERS = (3, 4)  # layers, from 0, in which a token's writer attends to its cells
_SPECIAL_IDS = {"bos_token_id": "<bos>", "eos_token_id": "<eos>", "pad_token_id": "<pad>"}


def make_parts(
    entry: CatalogEntry,
    tokenizer: Tokenizer,
    size: ModelSize,
    encode_mask: Callable[[Masks], tuple[int, ...]],
    mask_decoder: MaskDecoder,
) -> FamilyParts:
    """Return an untrained model with its formats; masks are written as their codes."""
    language = make_language(entry, tokenizer, PaliGemmaAnswers(encode_mask).answer_pieces)
    return FamilyParts(PaliGemmaTrainee(tokenizer, size), language, mask_decoder)


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


def make_processor(tokenizer: Tokenizer, size: ModelSize) -> Any:
    """Return the checkpoint's processor."""
    image_processor: Any = SiglipImageProcessor(
        size={"height": size.image_px, "width": size.image_px},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    image_processor.image_seq_length = size.num_cells
    fast = fast_tokenizer(tokenizer, "<bos>", "<eos>", {"padding_side": "left"})
    return _Processor(image_processor, fast)


def make_config(tokenizer: Tokenizer, size: ModelSize) -> PaliGemmaConfig:
    """Return a small PaliGemma with image tokens of 16 px."""
    (vision_size,) = size.vision_sizes
    (vision_depth,) = size.vision_depths
    ids: dict[str, Any] = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
    text_config: dict[str, Any] = {
        "model_type": "gemma",
        "vocab_size": padded_size(tokenizer),
        "hidden_size": size.hidden_size,
        "intermediate_size": size.feed_forward_size,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": _NUM_HEADS,
        "num_key_value_heads": _NUM_HEADS,
        "head_dim": size.hidden_size // _NUM_HEADS,
        "max_position_embeddings": size.num_positions,
        "num_image_tokens": size.num_cells,
        **ids,
    }
    vision_config = {
        "model_type": "siglip_vision_model",
        "image_size": size.image_px,
        "patch_size": size.image_px // size.grid,
        "hidden_size": vision_size,
        "intermediate_size": 4 * vision_size,
        "num_hidden_layers": vision_depth,
        "num_attention_heads": 6,
        "vision_use_head": False,
    }
    return PaliGemmaConfig(
        text_config=text_config,
        vision_config=vision_config,
        projection_dim=size.hidden_size,
        hidden_size=size.hidden_size,
        image_token_index=token_id(tokenizer, IMAGE_TOKEN),
        **ids,
    )


class PaliGemmaTrainee(Trainee):
    """A PaliGemma model in training.

    SigLIP has one table of cells instead of rows and columns. Gemma normalises before each layer,
    so that the residual stream does not fade: no layer is quiet.
    """

    def __init__(self, tokenizer: Tokenizer, size: ModelSize) -> None:
        ids = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
        config = make_config(tokenizer, size)
        super().__init__(
            size,
            untrained(PaliGemmaForConditionalGeneration, config, ids, size.max_new_tokens),
            make_processor(tokenizer, size),
            [token_id(tokenizer, location_token(index)) for index in range(NUM_BINS)],
            (NUM_BINS - 1) / CANVAS_PX,
        )

    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run Gemma over images, prompts and the true answers; `image_features` (Q, N, C)."""
        num_cells = self.size.num_cells
        token_ids, num_tokens = _joined(batch, self.model.config.text_config.pad_token_id)
        embeds = torch.cat([image_features, self.model.get_input_embeddings()(token_ids)], dim=1)
        num_prefix = num_cells + batch.num_prompt
        hidden = self.language_model(
            inputs_embeds=embeds,
            attention_mask=_additive_mask(num_prefix, num_cells + num_tokens, embeds.shape[1]),
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
            states=hidden.last_hidden_state[rows, writers],
            cell_states=hidden.hidden_states[_MATCHING_LAYER][:, :num_cells],
            writer_states=hidden.hidden_states[-2][rows, writers],
            attentions=[
                hidden.attentions[layer].transpose(1, 2)[rows, writers][..., :num_cells]
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
