"""Florence-2 in training: configuration, prompt and answer format, forward pass with attention
weights.

Shapes: B images, Q sequences, N image cells, S prompt, T answer, C hidden, V vocabulary, A heads.
"""

from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)

from export.scenes import CANVAS_PX
from laboratory.training.data.batches import NO_TOKEN, SequenceBatch
from laboratory.training.data.examples import Language
from laboratory.training.data.florence2_answers import answer_pieces
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
from tasks.florence2.locations import NUM_BINS, location_token

_Processor: Any = Florence2Processor  # transformers' classes have no types

MINI = ModelSize(
    image_px=192,
    grid=12,
    hidden_size=128,
    feed_forward_size=512,
    num_layers=3,
    vision_sizes=(32, 64, 128, 128),
    vision_depths=(0, 1, 2, 1),
    num_positions=320,
    max_new_tokens=128,
)
_NUM_HEADS = 4
_OCR_PATTERN = r"(.+?)" + r"<loc_(\d+)>" * 8


def make_parts(entry: CatalogEntry, tokenizer: Tokenizer, size: ModelSize) -> FamilyParts:
    """Return an untrained model with its vocabulary and formats."""
    return FamilyParts(Florence2Trainee(tokenizer, size), make_language(entry, tokenizer), None)


def make_language(entry: CatalogEntry, tokenizer: Tokenizer) -> Language:
    """Return the family's formats: prompts `<s> … </s>` and answers `<s> … </s>`."""
    bos = token_id(tokenizer, "<s>")
    eos = token_id(tokenizer, "</s>")
    return Language(
        entry, tokenizer, prompt_tokenizer(tokenizer), (bos,), (eos,), (bos,), (eos,), answer_pieces
    )


def make_processor(tokenizer: Tokenizer, size: ModelSize) -> Any:
    """Return the checkpoint's processor."""
    image_processor: Any = CLIPImageProcessor(
        size={"height": size.image_px, "width": size.image_px},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    image_processor.image_seq_length = size.num_cells + Florence2Trainee.num_pooled
    kinds = (
        "pure_text",
        "description_with_bboxes",
        "description_with_polygons",
        "polygons",
        "bboxes",
    )
    post_processor = {
        "ocr": {"PATTERN": _OCR_PATTERN, "AREA_THRESHOLD": 0.0},
        "phrase_grounding": {"banned_grounding_tokens": ["the image"]},
        "description_with_bboxes_or_polygons": {},
        **{kind: {} for kind in kinds},
    }
    fast = fast_tokenizer(tokenizer, "<s>", "</s>")
    return _Processor(image_processor, fast, post_processor_config=post_processor)


def make_config(tokenizer: Tokenizer, size: ModelSize) -> Florence2Config:
    """Return a small Florence-2: image tokens of 16 px and their mean."""
    ids: dict[str, Any] = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
    text_config: dict[str, Any] = {
        "model_type": "bart",
        "vocab_size": padded_size(tokenizer),
        "d_model": size.hidden_size,
        "max_position_embeddings": size.num_positions,
        "encoder_layers": size.num_layers,
        "decoder_layers": size.num_layers,
        "encoder_attention_heads": _NUM_HEADS,
        "decoder_attention_heads": _NUM_HEADS,
        "encoder_ffn_dim": size.feed_forward_size // 2,
        "decoder_ffn_dim": size.feed_forward_size,
        "dropout": 0.0,
        "tie_word_embeddings": True,
        **ids,
    }
    vision_config = {
        "embed_dim": list(size.vision_sizes),
        "depths": list(size.vision_depths),
        "num_heads": [1, 2, 4, 4],
        "num_groups": [1, 2, 4, 4],
        "patch_stride": [4, 2, 2, 1],
        "patch_padding": [3, 1, 1, 1],
        "window_size": size.grid,
        "mlp_ratio": 2.0,
        "drop_path_rate": 0.0,
        "projection_dim": size.hidden_size,
        "max_position_embeddings": 32,
        "max_temporal_embeddings": 4,
    }
    image_token_id = token_id(tokenizer, IMAGE_TOKEN)
    return Florence2Config(
        text_config=text_config, vision_config=vision_config, image_token_id=image_token_id, **ids
    )


_SPECIAL_IDS = {
    "bos_token_id": "<s>",
    "pad_token_id": "<pad>",
    "eos_token_id": "</s>",
    "decoder_start_token_id": "</s>",
    "forced_eos_token_id": "</s>",
}


class Florence2Trainee(Trainee):
    """A Florence-2 model in training."""

    num_pooled = 1  # their mean

    def __init__(self, tokenizer: Tokenizer, size: ModelSize) -> None:
        ids = {name: token_id(tokenizer, token) for name, token in _SPECIAL_IDS.items()}
        rules = {**ids, "forced_bos_token_id": ids["bos_token_id"], "num_beams": 1}
        config = make_config(tokenizer, size)
        super().__init__(
            size,
            untrained(Florence2ForConditionalGeneration, config, rules, size.max_new_tokens),
            make_processor(tokenizer, size),
            [token_id(tokenizer, location_token(index)) for index in range(NUM_BINS)],
            NUM_BINS / CANVAS_PX,
        )

    @property
    def position_tables(self) -> list[Tensor]:
        """Embeddings of the image's rows and columns."""
        table = self.model.model.multi_modal_projector.image_position_embed
        return [table.row_embeddings.weight, table.column_embeddings.weight]

    @property
    def quiet_layers(self) -> list[nn.Linear]:
        """The text encoder's outputs: its norms after each addition would fade the image."""
        layers = self.language_model.encoder.layers
        return [*(layer.self_attn.out_proj for layer in layers), *(layer.fc2 for layer in layers)]

    def write(self, image_features: Tensor, batch: SequenceBatch) -> WrittenAnswers:
        """Run BART's encoder over images and prompts, its decoder over answers; `image_features`
        (Q, 1 + N, C).
        """
        bart = self.model.model.language_model
        num_image = image_features.shape[1]
        inputs_embeds = torch.cat([image_features, bart.shared(batch.prompt_ids)], dim=1)
        num_read = num_image + batch.num_prompt
        mask = (
            torch.arange(inputs_embeds.shape[1], device=num_read.device) < num_read[:, None]
        ).long()
        encoded = bart.encoder(inputs_embeds=inputs_embeds, attention_mask=mask).last_hidden_state
        start = torch.full_like(
            batch.answer_ids[:, :1], self.model.config.text_config.decoder_start_token_id
        )
        previous = torch.cat([start, batch.answer_ids[:, :-1]], dim=1)
        previous = previous.masked_fill(
            previous == NO_TOKEN, self.model.config.text_config.pad_token_id
        )
        decoded = bart.decoder(
            input_ids=previous,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
        return WrittenAnswers(
            states=decoded.last_hidden_state,
            cell_states=encoded[:, self.num_pooled : num_image],
            writer_states=decoded.hidden_states[-2],
            attentions=[
                layer[..., self.num_pooled : num_image].transpose(1, 2)
                for layer in decoded.cross_attentions
            ],
        )
