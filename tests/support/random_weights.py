"""Checkpoints of random weights in every published configuration."""

from typing import Any

import torch
from transformers import PaliGemmaConfig

from laboratory.bench.random_weights import FLORENCE_2_BASE, Shape, florence2

_PATCH_PX = 14  # patch side of PaliGemma's vision tower
_GEMMA_2B = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


def _paligemma(text: dict[str, Any], num_layers: int, image_size_px: int, **values: Any) -> Shape:
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
        width = text["hidden_size"]
        return PaliGemmaConfig(
            text_config=text | layers,
            vision_config=vision_config,
            projection_dim=width,
            hidden_size=width,
        )

    num_image_tokens = (image_size_px // _PATCH_PX) ** 2
    return Shape(
        config, "paligemma-mini", image_size_px, num_image_tokens, torch.bfloat16, **values
    )


def _paligemma1(image_size_px: int) -> Shape:
    offsets = {"language_model.norm.weight": 15.0}
    return _paligemma(
        _GEMMA_2B, 18, image_size_px, generation={}, embedding_std=0.003, norm_offsets=offsets
    )


def _paligemma2(
    hidden: int, intermediate: int, num_heads: int, num_key_value_heads: int, num_layers: int
) -> Shape:
    """Source: transformers, models/gemma2/convert_gemma2_weights_to_hf.py; google/gemma-2-27b,
    config.json.
    """
    head_size = 128 if num_heads == 32 else 256
    text = {
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
    offsets = {"language_model.norm.weight": 1.4, "post_feedforward_layernorm.weight": 9.0}
    generation = {"cache_implementation": "hybrid"}
    return _paligemma(
        text, num_layers, 224, generation=generation, embedding_std=0.02, norm_offsets=offsets
    )


SHAPES = {
    "florence-2-base": FLORENCE_2_BASE,
    "florence-2-large": florence2(1024, 256, 12, 4096),
    "paligemma-3b-mix-224": _paligemma1(224),
    "paligemma-3b-mix-448": _paligemma1(448),
    "paligemma-3b-pt-896": _paligemma1(896),
    "paligemma-2-3b-mix-224": _paligemma2(2304, 9216, 8, 4, 26),
    "paligemma-2-10b-mix-224": _paligemma2(3584, 14336, 16, 8, 42),
    "paligemma-2-28b-mix-224": _paligemma2(4608, 36864, 32, 16, 46),
}
