"""Checkpoints with random weights in published configurations.

    python -m tests.support.random_weights NAME FOLDER

Only the number of layers and the tokenizer differ from the release: tokenizer and special token ids
are those of an embedded checkpoint. Answers are meaningless, but all widths, dtypes and generation
rules are real.
"""

import argparse
import math
import sys
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

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Processor: Any = AutoProcessor
_GenerationConfig: Any = GenerationConfig

_MODELS = Path(__file__).parents[2] / "models"
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


def _florence2(
    d_model: int, embed_dim: int, num_layers: int, max_positions: int
) -> Callable[[int], Florence2Config]:
    """Source: transformers, models/florence2/convert_florence2_original_pytorch_to_hf.py;
    microsoft/Florence-2-*.
    """

    def config(max_layers: int) -> Florence2Config:
        layers = min(num_layers, max_layers)
        heads = d_model // 64
        width = 4 * d_model
        stage_heads = [embed_dim // 32 * 2**stage for stage in range(4)]
        text_config = {
            "model_type": "bart",
            "vocab_size": 51328,  # 51289 and the image token, rounded up to a multiple of 64
            "d_model": d_model,
            "max_position_embeddings": max_positions,
            **{f"{part}_layers": layers for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": heads for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": width for part in ("encoder", "decoder")},
        }
        vision_config = {
            "embed_dim": [embed_dim * 2**stage for stage in range(4)],
            "num_heads": stage_heads,
            "num_groups": stage_heads,
            "depths": [min(depth, max_layers) for depth in (1, 1, 9, 1)],
            "projection_dim": d_model,
        }
        return Florence2Config(text_config=text_config, vision_config=vision_config)

    return config


def _paligemma(
    text: dict[str, Any], num_layers: int, image_size_px: int
) -> Callable[[int], PaliGemmaConfig]:
    """Source: transformers, models/paligemma/convert_paligemma_weights_to_hf.py and
    convert_paligemma2_….
    """

    def config(max_layers: int) -> PaliGemmaConfig:
        vision_config = {
            "model_type": "siglip_vision_model",
            "image_size": image_size_px,
            "patch_size": _PATCH_PX,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": min(27, max_layers),
            "vision_use_head": False,
        }
        layers = {"num_hidden_layers": min(num_layers, max_layers), "vocab_size": 257216}
        return PaliGemmaConfig(
            text_config=text | layers,
            vision_config=vision_config,
            projection_dim=text["hidden_size"],
            hidden_size=text["hidden_size"],
        )

    return config


_GEMMA_2B = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


def _gemma2(
    hidden: int, intermediate: int, num_heads: int, num_key_value_heads: int, head_size: int
) -> dict[str, Any]:
    """Source: transformers, models/gemma2/convert_gemma2_weights_to_hf.py; google/gemma-2-27b,
    config.json.
    """
    return {
        "model_type": "gemma2",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_size,
        "query_pre_attn_scalar": 144 if head_size == 128 else head_size,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    }


_FLORENCE2_GENERATION = {
    "decoder_start_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "no_repeat_ngram_size": 3,
    "num_beams": 3,
    "early_stopping": True,
}

SHAPES = {
    **{
        f"florence-2-{size}": Shape(
            config=_florence2(d_model, embed_dim, num_layers, max_positions),
            tokenizer_of="florence-2-mini",
            image_size_px=768,
            num_image_tokens=577,
            dtype=torch.float16,
            generation=_FLORENCE2_GENERATION,
            embedding_std=0.05,
        )
        for size, d_model, embed_dim, num_layers, max_positions in (
            ("base", 768, 128, 6, 1024),
            ("large", 1024, 256, 12, 4096),
        )
    },
    **{
        f"paligemma-3b-{kind}-{image_size_px}": Shape(
            config=_paligemma(_GEMMA_2B, 18, image_size_px),
            tokenizer_of="paligemma-mini",
            image_size_px=image_size_px,
            num_image_tokens=(image_size_px // _PATCH_PX) ** 2,
            dtype=torch.bfloat16,
            generation={},
            embedding_std=0.003,
            norm_offsets={"language_model.norm.weight": 15.0},
        )
        for kind, image_size_px in (("mix", 224), ("mix", 448), ("pt", 896))
    },
    **{
        f"paligemma-2-{size}-mix-224": Shape(
            config=_paligemma(text, num_layers, 224),
            tokenizer_of="paligemma-mini",
            image_size_px=224,
            num_image_tokens=256,
            dtype=torch.bfloat16,
            generation={"cache_implementation": "hybrid"},
            embedding_std=0.02,
            norm_offsets={
                "language_model.norm.weight": 1.4,
                "post_feedforward_layernorm.weight": 9.0,
            },
        )
        for size, text, num_layers in (
            ("3b", _gemma2(2304, 9216, 8, 4, 256), 26),
            ("10b", _gemma2(3584, 14336, 16, 8, 256), 42),
            ("28b", _gemma2(4608, 36864, 32, 16, 128), 46),
        )
    },
}


def write_random_checkpoint(
    name: str,
    folder: Path,
    max_layers: int,
    seed: int = 0,
    gain: float = GAIN,
    max_decoder_layers: int | None = None,
) -> None:
    """Write a checkpoint of shape `name` with at most `max_layers` layers in every stack, and at
    most `max_decoder_layers` in Gemma's.

    With a small `gain`, quantised weights change the output little, as in trained models.
    """
    shape = SHAPES[name]
    processor = _Processor.from_pretrained(_MODELS / shape.tokenizer_of)
    processor.image_processor.size = {"height": shape.image_size_px, "width": shape.image_size_px}
    processor.image_processor.image_seq_length = shape.num_image_tokens
    config = shape.config(max_layers)
    if max_decoder_layers is not None:
        config.get_text_config().num_hidden_layers = max_decoder_layers
    config.image_token_id = processor.tokenizer.image_token_id
    special_ids = {name: getattr(processor.tokenizer, name) for name in _SPECIAL_IDS}
    for part in (config, config.get_text_config()):
        part.update(special_ids)
    with no_init_weights():
        model = _Model.from_config(config, dtype=shape.dtype)
    model.tie_weights()
    _randomise(model, shape, gain, torch.Generator().manual_seed(seed))
    model.generation_config = _GenerationConfig(**special_ids, **shape.generation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@torch.no_grad()
def _randomise(model: Any, shape: Shape, gain: float, generator: torch.Generator) -> None:
    """Draw every parameter, scaled so that activations keep their size and greedy answers keep
    changing.

    Embeddings must be small against the output of Gemma's feed-forward layers: the output head is
    tied to them, so that a dominant embedding would predict its own token again. The last norm
    scales the logits to a standard deviation of about 2.
    """
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Embedding):
            parameter.normal_(0.0, shape.embedding_std, generator=generator)
        elif parameter.ndim > 1:
            std = gain / math.sqrt(parameter[0].numel())
            parameter.normal_(0.0, std, generator=generator)
        else:  # Gemma's norm adds 1 itself
            is_factor = isinstance(owner, nn.LayerNorm) and parameter is owner.weight
            parameter.normal_(float(is_factor), _VECTOR_STD, generator=generator)
        parameter.add_(
            sum(offset for end, offset in shape.norm_offsets.items() if name.endswith(end))
        )


def main() -> int:
    """Write one checkpoint; return the exit status."""
    name = "python -m tests.support.random_weights"
    parser = argparse.ArgumentParser(name, description=__doc__)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    layers = "maximum in every stack; default: %(default)s"
    parser.add_argument("--layers", type=int, default=2, help=layers)
    arguments = parser.parse_args()
    write_random_checkpoint(arguments.name, arguments.folder, arguments.layers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
