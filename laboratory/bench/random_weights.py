"""Checkpoints with random weights in published configurations.

Only the number of layers and the tokenizer differ from the release: tokenizer and special token ids
are those of an embedded checkpoint. Answers are meaningless, but all widths, dtypes and generation
rules are real.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Florence2Config,
    GenerationConfig,
    PaliGemmaConfig,
)
from transformers.initialization import no_init_weights

from export.checkpoints.bases import ROOT

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Processor: Any = AutoProcessor
_GenerationConfig: Any = GenerationConfig

GAIN = 2.0  # standard deviation of every weight matrix, times sqrt(fan in)
# spread of biases, and of norms around their neutral value: a test notices a missing one
_VECTOR_STD = 0.05
_PATCH_PX = 14  # patch side of PaliGemma's vision tower
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class Shape:
    """One published configuration."""

    config: Callable[[int], Florence2Config | PaliGemmaConfig]  # argument: maximum number of layers
    tokenizer_of: str  # an embedded checkpoint of the same family
    image_size_px: int
    num_image_tokens: int
    dtype: torch.dtype
    generation: dict[str, Any]
    embedding_std: float
    # suffix of a weight's name -> value added to it
    norm_offsets: Mapping[str, float] = field(default_factory=dict)


def florence2(d_model: int, embed_dim: int, num_layers: int, max_positions: int) -> Shape:
    """Return a size of Florence-2.

    Source: transformers, models/florence2/convert_florence2_original_pytorch_to_hf.py;
    microsoft/Florence-2-*.
    """
    heads = [embed_dim // 32 * 2**stage for stage in range(4)]

    def config(max_layers: int) -> Florence2Config:
        text_config = {
            "model_type": "bart",
            "vocab_size": 51328,  # 51289 and the image token, rounded up to a multiple of 64
            "d_model": d_model,
            "max_position_embeddings": max_positions,
        }
        for part in ("encoder", "decoder"):
            text_config[f"{part}_layers"] = min(num_layers, max_layers)
            text_config[f"{part}_attention_heads"] = d_model // 64
            text_config[f"{part}_ffn_dim"] = 4 * d_model
        vision_config = {
            "embed_dim": [embed_dim * 2**stage for stage in range(4)],
            "num_heads": heads,
            "num_groups": heads,
            "depths": [min(depth, max_layers) for depth in (1, 1, 9, 1)],
            "projection_dim": d_model,
        }
        return Florence2Config(text_config=text_config, vision_config=vision_config)

    generation = {
        "decoder_start_token_id": 2,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "no_repeat_ngram_size": 3,
        "num_beams": 3,
        "early_stopping": True,
    }
    return Shape(config, "florence-2-mini", 768, 577, torch.float16, generation, 0.05)


def paligemma(image_size_px: int) -> Shape:
    """Return PaliGemma-3B at one resolution.

    Source: transformers, models/paligemma/convert_paligemma_weights_to_hf.py.
    """

    def config(max_layers: int) -> PaliGemmaConfig:
        config = PaliGemmaConfig()
        text_config: Any = config.text_config
        text_config.vocab_size = 257216
        text_config.num_hidden_layers = min(18, max_layers)
        vision_config: Any = config.vision_config
        vision_config.image_size = image_size_px
        vision_config.intermediate_size = 4304
        vision_config.num_hidden_layers = min(27, max_layers)
        return PaliGemmaConfig(vision_config=vision_config, text_config=text_config)

    num_image_tokens = (image_size_px // _PATCH_PX) ** 2
    norms = {"language_model.norm.weight": 15.0}
    return Shape(
        config, "paligemma-mini", image_size_px, num_image_tokens, torch.bfloat16, {}, 0.003, norms
    )


FLORENCE_2_BASE = florence2(768, 128, 6, 1024)
PALIGEMMA_3B = paligemma(224)


def write_random_checkpoint(
    shape: Shape, folder: Path, max_layers: int, gain: float = GAIN
) -> None:
    """Write at most `max_layers` layers a stack; a small `gain` lets int8 change little."""
    processor = _Processor.from_pretrained(ROOT / "models" / shape.tokenizer_of)
    processor.image_processor.size = {"height": shape.image_size_px, "width": shape.image_size_px}
    processor.image_processor.image_seq_length = shape.num_image_tokens
    config = shape.config(max_layers)
    config.image_token_id = processor.tokenizer.image_token_id
    special_ids = {name: getattr(processor.tokenizer, name) for name in _SPECIAL_IDS}
    for part in (config, config.get_text_config()):
        part.update(special_ids)
    with no_init_weights():
        model = _Model.from_config(config, dtype=shape.dtype)
    model.tie_weights()
    _randomise(model, shape, gain)
    model.generation_config = _GenerationConfig(**special_ids, **shape.generation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def _randomise(model: Any, shape: Shape, gain: float) -> None:
    """Draw every parameter, scaled so that activations keep their size and greedy answers keep
    changing.

    Embeddings must be small against the output of Gemma's feed-forward layers: the output head is
    tied to them, so that a dominant embedding would predict its own token again. The last norm
    scales the logits to a standard deviation of about 2.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        mean = 0.0
        std = _VECTOR_STD
        if isinstance(owner, nn.Embedding):
            std = shape.embedding_std
        elif parameter.ndim > 1:
            std = gain / math.sqrt(parameter[0].numel())
        elif isinstance(owner, nn.LayerNorm) and parameter is owner.weight:
            mean = 1.0  # Gemma's norm adds 1 itself
        parameter.normal_(mean, std, generator=generator)
        for end, offset in shape.norm_offsets.items():
            if name.endswith(end):
                parameter.add_(offset)
