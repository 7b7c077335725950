"""The names of Florence-2's weights: Microsoft's own, and transformers'.

Checkpoints in Microsoft's form and adapters tuned over them have Microsoft's names.

Source: transformers, models/florence2/convert_florence2_original_pytorch_to_hf.py.
"""

import re

_RENAMES = (
    (r"^vision_tower\.convs\.(\d+)\.proj\.", r"model.vision_tower.convs.\1.conv."),
    (r"\.conv([12])\.fn\.dw\.", r".conv\1."),
    (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
    (r"\.ffn\.norm\.", ".norm2."),
    (r"\.(window|channel)_attn\.fn\.", r".\1_attn."),
    (r"\.ffn\.fn\.net\.", ".ffn."),
    (r"^vision_tower\.", "model.vision_tower."),
    (r"^image_projection$", "model.multi_modal_projector.image_projection.weight"),
    (r"^image_proj_norm\.", "model.multi_modal_projector.image_proj_norm."),
    (r"^image_pos_embed\.", "model.multi_modal_projector.image_position_embed."),
    (r"^visual_temporal_embed\.", "model.multi_modal_projector.visual_temporal_embed."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
)


def transformers_name(weight: str) -> str:
    """Return a weight's name in transformers 5; its names there are left as they are."""
    for pattern, replacement in _RENAMES:
        weight = re.sub(pattern, replacement, weight)
    return weight
