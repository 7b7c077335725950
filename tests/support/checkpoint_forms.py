"""Checkpoints as people have them, and what the export reads of one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from export.checkpoints.sources import (
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    in_transformers_form,
    resolve_source,
)
from export.checkpoints.tensors import CheckpointTensors, check_vocabulary, empty_model
from runners.tokens.text import GenerationRules
from tests.support.microsoft_form import (
    NUM_ROWS,
    MicrosoftModel,
    converted,
    update_json,
    write_microsoft_form,
)
from tests.support.random_checkpoints import write_random_checkpoint
from wire.artifacts.manifest import TOKENIZER_FILE

Base = Literal["Florence-2, Microsoft's form", "Florence-2", "PaliGemma"]
MICROSOFT: Base = "Florence-2, Microsoft's form"
FLORENCE: Base = "Florence-2"
PALIGEMMA: Base = "PaliGemma"
_Processor: Any = AutoProcessor  # transformers' factories have no types
_Model: Any = Florence2ForConditionalGeneration
_NAMES_OF_2024 = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The parts of a checkpoint that decide its answers."""

    weights: Mapping[str, Tensor]
    rules: GenerationRules
    vocabulary: Mapping[str, int]

    def equals(self, other: "Loaded") -> bool:
        """Return True for the same answers; rows and tokens of an added vocabulary are apart."""
        shared = self.vocabulary.keys() & other.vocabulary.keys()
        return (
            self.rules == other.rules
            and self.weights.keys() == other.weights.keys()
            and len(shared) == min(len(self.vocabulary), len(other.vocabulary))
            and all(self.vocabulary[token] == other.vocabulary[token] for token in shared)
            and all(_equal(tensor, other.weights[name]) for name, tensor in self.weights.items())
        )


def _equal(tensor: Tensor, other: Tensor) -> bool:
    if tensor.ndim > 1:  # padding rows of the embeddings are not tokens
        num_rows = min(len(tensor), len(other), NUM_ROWS)
        tensor, other = tensor[:num_rows], other[:num_rows]
    return torch.equal(tensor.float(), other.float())


def write_base(base: Base, folder: Path) -> Path:
    folder.mkdir()
    if base == PALIGEMMA:
        write_random_checkpoint("paligemma", folder)
        return folder
    write_microsoft_form(MicrosoftModel.random().weights(), folder)
    return folder if base == MICROSOFT else converted(folder, folder / "converted")


def read(base: Base, folder: Path) -> Loaded:
    """Read a checkpoint as the export does; raise `SourceError`."""
    family: Any = "paligemma" if base == PALIGEMMA else "florence2"
    with in_transformers_form(resolve_source(str(folder), None, family, Path())) as source:
        tensors = CheckpointTensors.open(source.folder)
        check_vocabulary(source.folder, tensors)
        tensors.check_tied()
        weights = {name: tensor.clone() for name, tensor in tensors.items()}
        rules = GenerationRules.of(empty_model(source.folder).generation_config.to_dict())
        tokenizer = Tokenizer.from_file(str(source.folder / TOKENIZER_FILE))
    return Loaded(weights, rules, tokenizer.get_vocab())


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def add_tokens(folder: Path) -> None:
    """Add tokens as notebooks do: embeddings of exactly as many rows as the tokenizer has."""
    processor = _Processor.from_pretrained(folder)
    model = _Model.from_pretrained(folder, dtype=torch.float16)
    processor.tokenizer.add_tokens(["<DocVQA>", "<my_label>"], special_tokens=True)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_older(folder: Path) -> None:
    """Give PaliGemma the form of its release: shards without a head, and names, keys and processor
    file of transformers 4.41, models/paligemma/convert_paligemma_weights_to_hf.py.
    """
    weights = load_file(folder / WEIGHTS_FILE)
    weights.pop("lm_head.weight", None)
    (folder / WEIGHTS_FILE).unlink()
    files: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        shard = {name_of_2024(name): weights[name].clone() for name in list(weights)[number::3]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("rope_parameters", "layer_types", "tie_word_embeddings"):
        config["text_config"].pop(key, None)
    update_json(folder / "config.json", text_config=config["text_config"], dtype=None)
    processor = folder / "processor_config.json"
    values = json.loads(processor.read_text(encoding="utf-8"))
    older = values["image_processor"] | {"processor_class": values["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(older), encoding="utf-8")
    processor.unlink()


def name_of_2024(name: str) -> str:
    """Return PaliGemma's name of a weight before transformers 4.52."""
    for start, older in _NAMES_OF_2024.items():
        if name.startswith(start):
            return older + name.removeprefix(start)
    return name
