"""Published configurations for checkpoints of random weights."""

import torch
from transformers import PaliGemmaConfig

from laboratory.bench.random_weights import Shape, florence2

_PATCH_PX = 14  # patch side of PaliGemma's vision tower


def _paligemma(image_size_px: int) -> Shape:
    """Source: transformers, models/paligemma/convert_paligemma_weights_to_hf.py."""

    def config(max_layers: int) -> PaliGemmaConfig:
        text_config = {
            "model_type": "gemma",
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "num_hidden_layers": min(18, max_layers),
            "vocab_size": 257216,
        }
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
        return PaliGemmaConfig(
            text_config=text_config,
            vision_config=vision_config,
            projection_dim=2048,
            hidden_size=2048,
        )

    return Shape(
        config,
        "paligemma-mini",
        image_size_px,
        num_image_tokens=(image_size_px // _PATCH_PX) ** 2,
        dtype=torch.bfloat16,
        generation={},
        embedding_std=0.003,
        norm_offsets={"language_model.norm.weight": 15.0},
    )


SHAPES = {
    "florence-2-large": florence2(1024, 256, 12, 4096),
    "paligemma-3b-mix-224": _paligemma(224),
    "paligemma-3b-pt-896": _paligemma(896),
}
