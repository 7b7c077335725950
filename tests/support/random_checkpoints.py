"""Small checkpoints with random weights and the vocabularies of the embedded ones.

`paligemma2` has Gemma 2's soft caps and a sliding window shorter than its prefix.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from tests.support.export_cli import MODELS

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Config: Any = AutoConfig
_GenerationConfig: Any = GenerationConfig

RandomKind = Literal["florence2", "paligemma", "paligemma2"]
SLIDING_WINDOW = 12  # less than the 144 image tokens, and less than an answer
_SOURCES = {
    "florence2": "florence-2-mini",
    "paligemma": "paligemma-mini",
    "paligemma2": "paligemma-mini",
}
_FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
_WEIGHT_STD = 0.1  # added to every weight: keeps logits apart, which avoids near ties
# factor of the end token's embedding: Gemma then ends at varying positions, the others at their
# limit
_END_BIAS = 2

_GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "sliding_window": SLIDING_WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def write_random_checkpoint(kind: RandomKind, folder: Path) -> None:
    source = MODELS / _SOURCES[kind]
    for name in _FILES:
        shutil.copyfile(source / name, folder / name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if kind == "paligemma2":
        config["text_config"] = _GEMMA2 | {"vocab_size": config["text_config"]["vocab_size"]}
    torch.manual_seed(0)
    model = _Model.from_config(_Config.for_model(**config))
    model.generation_config = _GenerationConfig.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * _WEIGHT_STD)
        eos_token_id = model.generation_config.eos_token_id
        model.get_input_embeddings().weight[eos_token_id] *= _END_BIAS
    model.save_pretrained(folder)
