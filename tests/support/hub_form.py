"""Random checkpoints in the form of the released ones.

They differ from those that transformers writes today: the weights are in shards with an index,
without an output head, PaliGemma's under the names of transformers 4.41, with its configuration
keys and its single processor file. Source: huggingface/transformers v4.41.0,
models/paligemma/convert_paligemma_weights_to_hf.py.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from export.checkpoints.sources import WEIGHTS_INDEX_FILE
from tests.support.random_checkpoints import RandomKind, write_random_checkpoint

KINDS: dict[str, RandomKind] = {
    "florence-2-base": "florence2",
    "paligemma-3b-mix-224": "paligemma",
    "paligemma-2-3b-mix-224": "paligemma2",
}
EOS_TOKEN_IDS = [1, 107]  # PaliGemma 2: Gemma's <eos> and <end_of_turn>
NUM_SHARDS = 3
_WEIGHTS = "model.safetensors"
# Gemma 2 needs these: its answers would otherwise repeat one token.
_EMBEDDING_FACTOR = 0.3
_NORM_OFFSET = 9.0
_OLD_NAMES = {
    "model.language_model.": "language_model.model.",
    "vision_tower.": "vision_tower.vision_model.",
}
_OLD_KEYS = {"image_token_id": "image_token_index", "dtype": "torch_dtype"}
_NEW_TEXT_KEYS = (
    "rope_parameters",
    "layer_types",
    "tie_word_embeddings",
    "use_bidirectional_attention",
)


def write_hub_form(model_id: str, folder: Path) -> None:
    """Write a small random checkpoint of the kind of `model_id`."""
    kind = KINDS[model_id]
    write_random_checkpoint(kind, folder)
    weights = load_file(folder / _WEIGHTS)
    weights.pop("lm_head.weight", None)
    if kind != "florence2":
        weights = {_old_name(name): tensor for name, tensor in weights.items()}
        _make_config_old(folder / "config.json")
        _join_processor_files(folder)
    if kind == "paligemma2":
        embeddings = weights["language_model.model.embed_tokens.weight"]
        # the second one ends the answers
        embeddings[EOS_TOKEN_IDS] = embeddings[EOS_TOKEN_IDS[::-1]]
        embeddings *= _EMBEDDING_FACTOR
        for name, weight in weights.items():
            if name.endswith("post_feedforward_layernorm.weight"):
                weight += _NORM_OFFSET
        file = folder / "generation_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {"cache_implementation": "hybrid", "eos_token_id": EOS_TOKEN_IDS}
        file.write_text(json.dumps(config), encoding="utf-8")
    _write_shards(weights, folder)


def _old_name(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _make_config_old(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in _NEW_TEXT_KEYS:
        config["text_config"].pop(key, None)
    old = {_OLD_KEYS.get(key, key): value for key, value in config.items()}
    file.write_text(json.dumps(old | {"transformers_version": "4.41.0.dev0"}), encoding="utf-8")


def _join_processor_files(folder: Path) -> None:
    config = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    old = config["image_processor"] | {"processor_class": config["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(old), encoding="utf-8")
    (folder / "processor_config.json").unlink()


def _write_shards(weights: dict[str, Any], folder: Path) -> None:
    (folder / _WEIGHTS).unlink()
    files: dict[str, str] = {}
    for number in range(1, NUM_SHARDS + 1):
        file = f"model-{number:05}-of-{NUM_SHARDS:05}.safetensors"
        shard = {
            name: weights[name].contiguous() for name in list(weights)[number - 1 :: NUM_SHARDS]
        }
        save_file(shard, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
