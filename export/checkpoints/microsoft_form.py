"""Florence-2 in Microsoft's own form, rewritten in transformers' form.

Microsoft's repositories (`microsoft/Florence-2-*`, most fine-tunes of 2024) come with code, which
is never run. They differ from transformers' form in:

    weights     names; `image_projection` is transposed; the output head and the embeddings of
                encoder and decoder may be stored beside the shared embeddings, which they equal
    vocabulary  51,289 tokens without `<image>`; the code adds the last 1,024 to BART's tokenizer
    rules       `generate` runs on the language model, whose configuration has the rules, not
                generation_config.json

Sources: microsoft/Florence-2-large, configuration_florence2.py, modeling_florence2.py and
processing_florence2.py; transformers, models/florence2/convert_florence2_original_pytorch_to_hf.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.errors import SourceError
from wire.artifacts.manifest import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    PROCESSOR_CONFIG_FILE,
    TOKENIZER_FILE,
)
from wire.artifacts.microsoft_names import transformers_name

# The defaults of Microsoft's configuration classes: save_pretrained omits values equal to them.
_VISION = {
    "depths": [1, 1, 9, 1],
    "drop_path_rate": 0.1,
    "num_groups": [8, 16, 32, 64],
    "num_heads": [8, 16, 32, 64],
    "patch_padding": [3, 1, 1, 1],
    "patch_prenorm": [False, True, True, True],
    "patch_size": [7, 3, 3, 3],
    "patch_stride": [4, 2, 2, 2],
    "projection_dim": 1024,
    "window_size": 12,
}
_EMBED_DIM = [256, 512, 1024, 2048]
_TEXT = {
    "activation_function": "gelu",
    "d_model": 1024,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "encoder_layers": 12,
    "max_position_embeddings": 1024,
    "scale_embedding": False,
}
_SPECIAL_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_START_ID = 2
_RULES = {
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "no_repeat_ngram_size": 3,
    "num_beams": 3,
    "early_stopping": True,
}
_FORM_ERRORS = (AttributeError, IndexError, KeyError, TypeError, ValueError)
_IMAGE = "<image>"
_FIRST_ADDED = "<od>"
_TAGS = "cap ncap dcap grounding seg sep region_cap region_to_desciption proposal poly and"
_WITHOUT_END = ("sep", "and")
_NUM_LOCATIONS = 1000
_PATCH_PX = 32  # an image token stands for so many pixels in each direction; one more for the mean
# Phrases whose boxes processing_florence2.py drops when it grounds a caption.
_NOT_GROUNDED = (
    "I, me, mine, myself, you, your, yours, yourself, yourselves, he, him, his, himself, she, her,"
    " hers, herself, it, its, itself, we, us, our, ours, ourselves, they, them, their, theirs,"
    " themselves, one, oneself, this, that, these, those, who, whom, whose, which, what, all,"
    " another, any, anybody, anyone, anything, each, everybody, everyone, everything, few, many,"
    " nobody, none, several, some, somebody, someone, something, each other, one another,"
    " the image, image, images, the, a, an, a group, other objects, lots, a set"
)
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "TokenizersBackend",
    "backend": "tokenizers",
    "processor_class": "Florence2Processor",
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "image_token": _IMAGE,
}


def write_transformers_form(name: str, folder: Path, weights: Sequence[Path], output: Path) -> None:
    """Write a checkpoint of Microsoft's form into `output`; raise `SourceError`."""
    try:
        config = _read(folder, CONFIG_FILE)
        tokenizer = with_added_tokens(_read(folder, TOKENIZER_FILE))
        num_rows = write_weights(
            name, weights, _num_tokens(tokenizer), output / "model.safetensors"
        )
        token_ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        text = text_config(config, num_rows)
        ids = {key: text[key] for key in _SPECIAL_IDS}
        documents = {
            CONFIG_FILE: {
                "architectures": ["Florence2ForConditionalGeneration"],
                "model_type": "florence2",
                "is_encoder_decoder": True,
                "image_token_id": token_ids[_IMAGE],
                "text_config": text,
                "vision_config": vision_config(config),
                "tie_word_embeddings": True,
                **ids,
            },
            GENERATION_CONFIG_FILE: {**ids, **generation_rules(folder, config)},
            TOKENIZER_FILE: tokenizer,
            "tokenizer_config.json": _TOKENIZER_CONFIG
            | {"model_max_length": text["max_position_embeddings"]},
            PROCESSOR_CONFIG_FILE: processor_config(folder),
        }
    except (*_FORM_ERRORS, OSError, SafetensorError) as error:
        raise SourceError(
            f"the files of {name} are not those of Microsoft's form: {error!r}"
        ) from error
    for file_name, values in documents.items():
        (output / file_name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def _read(folder: Path, file_name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / file_name).read_text(encoding="utf-8"))
    return values


def text_config(config: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    text = config.get("text_config") or {}
    return _values(text, _TEXT | _SPECIAL_IDS) | {
        "model_type": "bart",
        "vocab_size": num_rows,
        "decoder_start_token_id": _value(text, "decoder_start_token_id", _START_ID),
        "tie_word_embeddings": True,
    }


def vision_config(config: Mapping[str, Any]) -> dict[str, Any]:
    vision = config.get("vision_config") or {}
    temporal = vision.get("visual_temporal_embedding") or {}
    positions = vision.get("image_pos_embed") or {}
    return _values(vision, _VISION) | {
        "model_type": "florence_vision",
        "embed_dim": _value(vision, "dim_embed", _EMBED_DIM),
        "max_temporal_embeddings": _value(temporal, "max_temporal_embeddings", 100),
        "max_position_embeddings": _value(positions, "max_pos_embeddings", 50),
    }


def generation_rules(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rules of the language model; a newer save_pretrained moves them to
    generation_config.json.

    The special ids of that file are never read: Microsoft's code reads none of them, and published
    files have those of other models.
    """
    text = config.get("text_config") or {}
    moved = dict[str, Any]()
    if (folder / GENERATION_CONFIG_FILE).is_file():
        moved = _read(folder, GENERATION_CONFIG_FILE)
    rules = _values(text, _values(moved, _RULES))
    return rules | {"decoder_start_token_id": _value(text, "decoder_start_token_id", _START_ID)}


def _values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _value(values, key, default) for key, default in defaults.items()}


def _value(values: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return a value, the default in the place of null."""
    value = values.get(key)
    return default if value is None else value


def with_added_tokens(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return BART's tokenizer with the tokens that Microsoft's processor adds, and `<image>`."""
    added = list(tokenizer.get("added_tokens") or [])
    present = {token["content"] for token in added}
    tokens: list[str] = []
    if _FIRST_ADDED not in present:  # the order is that of processing_florence2.py
        tokens += ["<od>", "</od>", "<ocr>", "</ocr>"]
        tokens += map("<loc_{}>".format, range(_NUM_LOCATIONS))
        for tag in _TAGS.split():
            tokens.append(f"<{tag}>")
            if tag not in _WITHOUT_END:
                tokens.append(f"</{tag}>")
    if _IMAGE not in present:
        tokens.append(_IMAGE)
    for token_id, token in enumerate(tokens, _num_tokens(tokenizer)):
        added.append({"id": token_id, "content": token, **_FLAGS})
    return tokenizer | {"added_tokens": added, "truncation": None, "padding": None}


def _num_tokens(tokenizer: Mapping[str, Any]) -> int:
    """Return the number after the highest id."""
    ids = [*tokenizer["model"]["vocab"].values()]
    for token in tokenizer.get("added_tokens") or []:
        ids.append(token["id"])
    return int(max(ids)) + 1


def processor_config(folder: Path) -> dict[str, Any]:
    """Return the settings of the image processor in the file of transformers' processor."""
    images = dict[str, Any]()
    for name in (PROCESSOR_CONFIG_FILE, "preprocessor_config.json"):
        if (folder / name).is_file():
            values = _read(folder, name)
            images |= values.get("image_processor") or values
    for key in ("auto_map", "_valid_processor_keys", "processor_class", "tokenizer"):
        images.pop(key, None)
    images.setdefault("image_seq_length", (images["size"]["height"] // _PATCH_PX) ** 2 + 1)
    return {
        "processor_class": "Florence2Processor",
        "num_additional_image_tokens": 0,
        "post_processor_config": {
            "phrase_grounding": {"banned_grounding_tokens": _NOT_GROUNDED.split(", ")}
        },
        "image_processor": images | {"image_processor_type": "CLIPImageProcessor"},
    }


_SHARED = "model.language_model.shared.weight"
_EMBEDDINGS = (
    "language_model.model.shared.weight",
    "language_model.model.encoder.embed_tokens.weight",
    "language_model.model.decoder.embed_tokens.weight",
    "language_model.lm_head.weight",
)
_LOGITS_BIAS = "language_model.final_logits_bias"
_IMAGE_PROJECTION = "image_projection"
_ROWS_MULTIPLE = 64


def write_weights(name: str, files: Sequence[Path], num_tokens: int, output: Path) -> int:
    """Write all weights; return the rows of the embeddings; raise `SourceError`."""
    stored = dict[str, Tensor]()
    for file in files:
        stored |= load_file(file)
    bias = stored.pop(_LOGITS_BIAS, None)
    if bias is not None and bias.any():
        raise SourceError(f"{name} has a {_LOGITS_BIAS} that is not zero; Florence-2 has none")
    embeddings, *copies = [stored.pop(key) for key in _EMBEDDINGS if key in stored]
    if not all(torch.equal(embeddings, copy) for copy in copies):
        raise SourceError(
            f"the head of {name} differs from its embeddings, to which Florence-2 ties it: an"
            " adapter was merged into one of both; export the base and serve the adapter"
        )
    stored[_IMAGE_PROJECTION] = stored[_IMAGE_PROJECTION].T
    weights = {transformers_name(key): tensor.contiguous() for key, tensor in stored.items()}
    weights[_SHARED] = _resized(name, embeddings, num_tokens)
    save_file(weights, output, metadata={"format": "pt"})
    return len(weights[_SHARED])


def _resized(name: str, embeddings: Tensor, num_tokens: int) -> Tensor:
    """Return embeddings with rows for `num_tokens`, rounded up."""
    num_rows, _ = embeddings.shape
    if num_rows < num_tokens - 1:  # all but <image>
        raise SourceError(
            f"{name} has embeddings of {num_rows} tokens; its tokenizer has {num_tokens - 1}"
        )
    num_padded = max(num_rows, -(-num_tokens // _ROWS_MULTIPLE) * _ROWS_MULTIPLE)
    # the logit of a mean row is the mean of all logits, and never the largest
    mean = embeddings.float().mean(0, keepdim=True).to(embeddings.dtype)
    return torch.cat([embeddings, mean.expand(num_padded - num_rows, -1)])
