"""Random checkpoints of Florence-2 in Microsoft's own form, and what Microsoft's code answers.

Widths and depths are small; vocabulary, image size and all other values are those of
microsoft/Florence-2-base, config.json. The language model is transformers' BART, which Microsoft's
code contains a copy of: its names are the checkpoint's, and its `generate` over image features and
embedded prompt is what Microsoft's `generate` calls.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    AutoProcessor,
    BartConfig,
    BartForConditionalGeneration,
    Florence2Config,
    Florence2ForConditionalGeneration,
)
from transformers.models.florence2.modeling_florence2 import (
    Florence2MultiModalProjector,
    Florence2VisionBackbone,
)

from export.checkpoints.sources import in_transformers_form, resolve_source
from tests.support.fake_decoder import tiny_tokenizer

_Processor: Any = AutoProcessor  # transformers' factories have no types
_Model: Any = Florence2ForConditionalGeneration
NUM_ROWS = 51289
NUM_BART_TOKENS = 50265
_WIDTH = 32
_DIM_EMBED = [8, 8, 16, 32]
_NUM_HEADS = [1, 1, 2, 4]
_STD = 0.3
_EMBEDDING_STD = 0.5
_SIZES = {"attention_heads": 2, "ffn_dim": 64, "layers": 1}
_TEXT = {f"encoder_{key}": size for key, size in _SIZES.items()}
_TEXT |= {f"decoder_{key}": size for key, size in _SIZES.items()}
_TEXT |= {"d_model": _WIDTH, "vocab_size": NUM_ROWS}
RULES = {
    "early_stopping": True,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "no_repeat_ngram_size": 3,
    "num_beams": 3,
}
_VISION = {
    "depths": [1, 1, 2, 1],
    "num_groups": _NUM_HEADS,
    "num_heads": _NUM_HEADS,
    "projection_dim": _WIDTH,
}
_PREPROCESSOR = {
    "_valid_processor_keys": ["images", "do_resize", "size"],
    "auto_map": {"AutoProcessor": "processing_florence2.Florence2Processor"},
    "do_center_crop": False,
    "do_convert_rgb": None,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "processor_class": "Florence2Processor",
    "resample": 3,
    "size": {"height": 768, "width": 768},
}


@dataclass(frozen=True, slots=True)
class MicrosoftModel:
    """The parts of a random model, in float32 with weights that float16 can express."""

    vision_tower: Any
    projector: Any
    language_model: Any

    @classmethod
    @torch.no_grad()
    def random(cls) -> "MicrosoftModel":
        torch.manual_seed(0)
        vision = _VISION | {"embed_dim": _DIM_EMBED, "model_type": "florence_vision"}
        config: Any = Florence2Config(
            text_config={"model_type": "bart", "d_model": _WIDTH}, vision_config=vision
        )
        values: Any = _TEXT
        parts = (
            Florence2VisionBackbone(config.vision_config),
            Florence2MultiModalProjector(config),
            BartForConditionalGeneration(BartConfig(**values)),
        )
        for part in parts:
            for name, parameter in part.named_parameters():
                std = _EMBEDDING_STD if "shared" in name else _STD
                parameter.add_(torch.randn_like(parameter) * std)
            part.half().float().eval()
        return cls(*parts)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights under Microsoft's names, in float16."""
        weights = dict[str, Tensor]()
        for name, tensor in self.vision_tower.state_dict().items():
            weights[f"vision_tower.{_tower_name(name)}"] = tensor
        for name, tensor in self.projector.state_dict().items():
            if name == "image_projection.weight":
                weights["image_projection"] = tensor.T
            else:
                weights[name.replace("image_position_embed.", "image_pos_embed.")] = tensor
        weights |= self.language_model.state_dict(prefix="language_model.")
        return {name: tensor.half().contiguous().clone() for name, tensor in weights.items()}

    @torch.inference_mode()
    def image_features(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.projector(self.vision_tower(pixel_values).last_hidden_state)
        return features

    @torch.inference_mode()
    def generate(
        self, image_features: Tensor, prompt_ids: Sequence[int], max_new_tokens: int
    ) -> list[int]:
        """Return the answer to a prompt about an image (N, C), with the rules of the release."""
        embedded = self.language_model.get_input_embeddings()(torch.tensor(prompt_ids))
        inputs = torch.cat([image_features, embedded])[None]
        output = self.language_model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            decoder_start_token_id=2,
            **RULES,
        )
        answer: list[int] = output[0, 1:].tolist()
        return answer


def microsoft_name(name: str) -> str:
    """Return Microsoft's name of a weight of vision tower, language model or head."""
    for start, theirs in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(start):
            return theirs + name.removeprefix(start)
    return f"vision_tower.{_tower_name(name.removeprefix('model.vision_tower.'))}"


def _tower_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "convs":
        return name.replace(".conv.", ".proj.")
    attention = "window_attn" if parts[3] == "spatial_block" else "channel_attn"
    renamed = {
        "conv1": "conv1.fn.dw",
        "conv2": "conv2.fn.dw",
        "norm1": f"{attention}.norm",
        "norm2": "ffn.norm",
        attention: f"{attention}.fn",
        "ffn": "ffn.fn.net",
    }
    return ".".join([*parts[:4], renamed[parts[4]], *parts[5:]])


def microsoft_config() -> dict[str, Any]:
    """Return a `config.json` without the defaults of Microsoft's classes, which are not saved."""
    vision = {"model_type": "davit", "dim_embed": _DIM_EMBED}
    return {
        "auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"},
        "bos_token_id": 0,
        "model_type": "florence2",
        "text_config": _TEXT | RULES | {"model_type": "florence2_language"},
        "vision_config": _VISION | vision,
    }


def bart_tokenizer() -> dict[str, Any]:
    """Return a tokenizer.json of BART's size, with its control tokens and bytes, without merges."""
    control = dict(enumerate(("<s>", "<pad>", "</s>", "<unk>")))
    text = dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), len(control)))
    first = len(control) + len(text)
    text |= {index: f"madeupword{index}" for index in range(first, NUM_BART_TOKENS - 1)}
    control[NUM_BART_TOKENS - 1] = "<mask>"
    splits = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return tiny_tokenizer(text, control) | {"pre_tokenizer": {"type": "ByteLevel"} | splits}


def write_microsoft_form(weights: Mapping[str, Tensor], folder: Path) -> None:
    files = {
        "config.json": microsoft_config(),
        "generation_config.json": {"num_beams": 3, "early_stopping": False},
        "preprocessor_config.json": _PREPROCESSOR,
        "tokenizer.json": bart_tokenizer(),
        "tokenizer_config.json": {"model_max_length": 1024},
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    (folder / "modeling_florence2.py").write_text("raise SystemExit('code was run')")
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})


def add_tokens(folder: Path) -> None:
    """Add tokens as notebooks do: embeddings of exactly as many rows as the tokenizer has."""
    processor = _Processor.from_pretrained(folder)
    model = _Model.from_pretrained(folder, dtype=torch.float16)
    processor.tokenizer.add_tokens(["<DocVQA>", "<my_label>"], special_tokens=True)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def update_json(file: Path, **values: object) -> None:
    """Set values of a JSON file; None removes one."""
    document = json.loads(file.read_text(encoding="utf-8")) | values
    kept = {key: value for key, value in document.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def converted(folder: Path, output: Path) -> Path:
    source = resolve_source(str(folder), None, "florence2", Path())
    with in_transformers_form(source) as same:
        assert (same.name, same.revision) == (source.name, None)
        return Path(shutil.copytree(same.folder, output))
