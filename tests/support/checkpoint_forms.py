"""The forms in which people have checkpoints, and what the export does with each.

A test builds each and compares its outcome with that of checkpoint_forms.json. A form is exact if
it gives the weights, generation rules and vocabulary of its base, whose answers are those of
transformers or of Microsoft's code (tests/export/checkpoints/).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from export.checkpoints.forms import in_transformers_form
from export.checkpoints.sources import WEIGHTS_FILE, resolve_source
from export.checkpoints.tensors import CheckpointTensors, check_vocabulary, empty_model
from export.errors import SourceError
from runners.tokens.rules import GenerationRules
from tests.support.hub_form import write_hub_form
from tests.support.microsoft_form import (
    NUM_ROWS,
    RULES,
    MicrosoftModel,
    converted,
    microsoft_config,
    update_json,
    write_microsoft_form,
)
from tests.support.random_checkpoints import write_random_checkpoint
from wire.artifacts.manifest import TOKENIZER_FILE

Base = Literal["Florence-2, Microsoft's form", "Florence-2", "PaliGemma"]
MICROSOFT: Base = "Florence-2, Microsoft's form"
FLORENCE: Base = "Florence-2"
PALIGEMMA: Base = "PaliGemma"
OUTCOMES: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("checkpoint_forms.json").read_text(encoding="utf-8")
)
ADDED_TOKENS = ("<DocVQA>", "<my_label>")
PICKLED_FILE = "pytorch_model.bin"
GENERATION_FILE = "generation_config.json"
_EMBEDDINGS = ("language_model.shared.weight", "embed_tokens.weight")
_LM_HEAD = "language_model.lm_head.weight"
_Processor: Any = AutoProcessor  # transformers' factories have no types
_Model: Any = Florence2ForConditionalGeneration


@dataclass(frozen=True, slots=True)
class Form:
    """A change to a base that makes it a form."""

    base: Base
    name: str
    change: Callable[[Path], None]


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
    if tensor.ndim < 2:
        return torch.equal(tensor.float(), other.float())
    # Padding rows of the embeddings are not tokens.
    num_rows = min(len(tensor), len(other), NUM_ROWS)
    return torch.equal(tensor[:num_rows].float(), other[:num_rows].float())


def write_base(base: Base, folder: Path) -> None:
    """Write a base into an empty folder."""
    if base == PALIGEMMA:
        write_random_checkpoint("paligemma", folder)
        return
    original = folder if base == MICROSOFT else folder.parent / f"{folder.name}-original"
    original.mkdir(exist_ok=True)
    write_microsoft_form(MicrosoftModel.random().weights(), original)
    if base == FLORENCE:
        shutil.copytree(
            converted(original, folder.parent / f"{folder.name}-converted"),
            folder,
            dirs_exist_ok=True,
        )


def read(base: Base, folder: Path) -> Loaded:
    """Read a checkpoint as the export does; raise `SourceError`."""
    family: Any = "paligemma" if base == PALIGEMMA else "florence2"
    with in_transformers_form(resolve_source(str(folder), None, family, Path())) as source:
        tensors = CheckpointTensors.open(source.folder)
        check_vocabulary(source.folder, tensors)
        tensors.check_values()
        weights = {name: tensor.clone() for name, tensor in tensors.items()}
        rules = GenerationRules.of(empty_model(source.folder).generation_config.to_dict())
        tokenizer = Tokenizer.from_file(str(source.folder / TOKENIZER_FILE))
    return Loaded(weights, rules, tokenizer.get_vocab())


def outcome(form: Form, base: Path, expected: Loaded, folder: Path) -> str:
    """Build a form of `base` in a new folder; return "exact", "other answers" or the refusal."""
    shutil.copytree(base, folder)
    form.change(folder)
    try:
        loaded = read(form.base, folder)
    except SourceError as error:
        message = str(error).replace(str(folder), "FOLDER")
        assert "\n" not in message
        return f"refused: {message}"
    return "exact" if loaded.equals(expected) else "other answers"


def _nothing(_folder: Path) -> None: ...


def _config(**values: object) -> Callable[[Path], None]:
    return lambda folder: update_json(folder / "config.json", **values)


def _generation(**values: object) -> Callable[[Path], None]:
    return lambda folder: update_json(folder / GENERATION_FILE, **values)


def _microsoft_vision(**values: object) -> Callable[[Path], None]:
    return _config(vision_config=microsoft_config()["vision_config"] | values)


def _without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def _without_text_type(folder: Path) -> None:
    text = microsoft_config()["text_config"]
    del text["model_type"]
    update_json(folder / "config.json", text_config=text, auto_map=None)


def _with_moved_rules(folder: Path) -> None:
    text = microsoft_config()["text_config"]
    for name in RULES:
        del text[name]
    update_json(folder / "config.json", text_config=text)
    update_json(folder / GENERATION_FILE, **RULES)


def _without_rules(folder: Path) -> None:
    _with_moved_rules(folder)
    (folder / GENERATION_FILE).unlink()


def _with_saved_tokens(folder: Path) -> None:
    with in_transformers_form(resolve_source(str(folder), None, "florence2", Path())) as same:
        tokenizer = json.loads((same.folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    assert tokenizer["added_tokens"].pop()["content"] == "<image>"
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer), encoding="utf-8")


def _weights(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS_FILE)
        change(weights)
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(contiguous, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    return changed


def _head_only(weights: dict[str, Tensor]) -> None:
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"):
        del weights[f"language_model.model.{name}.weight"]


def _in_float32(weights: dict[str, Tensor]) -> None:
    weights |= {name: tensor.float() for name, tensor in weights.items()}


def _plus_one(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.update({name: weights[name] + 1})


def _with_head(difference: float) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        (embeddings,) = (name for name in weights if name.endswith(_EMBEDDINGS))
        weights["lm_head.weight"] = weights[embeddings] + difference

    return change


def _without_weight(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.__delitem__(name)


def _fewer_rows(weights: dict[str, Tensor]) -> None:
    num_rows = len(weights[_LM_HEAD])
    for name, tensor in weights.items():
        if len(tensor) == num_rows:
            weights[name] = tensor[:-10]


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / PICKLED_FILE)
    (folder / WEIGHTS_FILE).unlink()


def add_tokens(folder: Path) -> None:
    """Add tokens as notebooks do: embeddings of exactly as many rows as the tokenizer has."""
    processor = _Processor.from_pretrained(folder)
    model = _Model.from_pretrained(folder, dtype=torch.float16)
    processor.tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _with_old_names(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    write_hub_form("paligemma-3b-mix-224", folder)


def _quantised(folder: Path) -> None:
    """Store one layer as bitsandbytes does in 4 bits: codes, and their scales beside them."""
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    update_json(folder / "config.json", quantization_config=method)
    weights = load_file(folder / WEIGHTS_FILE)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    num_codes = weights[name].numel()
    weights[name] = torch.zeros(num_codes // 2, 1, dtype=torch.uint8)
    weights[f"{name}.absmax"] = torch.zeros(num_codes // 64)
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _truncated(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1])


def _big_vision(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "pt_224.npz").write_bytes(b"")


_WRONG_IDS = _generation(bos_token_id=2, eos_token_id=1, pad_token_id=0)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_MODEL_ALONE = _without(TOKENIZER_FILE, *_PROCESSOR_FILES)

FORMS = (
    Form(MICROSOFT, "as published", _nothing),
    Form(MICROSOFT, "pytorch_model.bin", _pickled),
    Form(MICROSOFT, "float32", _weights(_in_float32)),
    Form(MICROSOFT, 'vision_config.model_type ""', _microsoft_vision(model_type="")),
    Form(MICROSOFT, "vision_config.model_type absent", _microsoft_vision(model_type=None)),
    Form(MICROSOFT, "text_config.model_type and auto_map absent", _without_text_type),
    Form(MICROSOFT, "rules moved to generation_config.json", _with_moved_rules),
    Form(MICROSOFT, "no rules in any file", _without_rules),
    Form(MICROSOFT, "eos 1, bos 2, pad 0 in generation_config.json", _WRONG_IDS),
    Form(MICROSOFT, "the processor's tokens saved in tokenizer.json", _with_saved_tokens),
    Form(MICROSOFT, "one of the tied weights saved", _weights(_head_only)),
    Form(MICROSOFT, "head and embeddings differ", _weights(_plus_one(_LM_HEAD))),
    Form(
        MICROSOFT, "a bias of the logits", _weights(_plus_one("language_model.final_logits_bias"))
    ),
    Form(MICROSOFT, "weights of transformers' form", _weights(_without_weight("image_projection"))),
    Form(MICROSOFT, "tokenizer of another fine-tune", _weights(_fewer_rows)),
    Form(
        MICROSOFT,
        "features of the last frame only",
        _microsoft_vision(image_feature_source=["last_frame"]),
    ),
    Form(MICROSOFT, "another vision tower", _microsoft_vision(model_type="siglip")),
    Form(MICROSOFT, "no processor files", _without(*_PROCESSOR_FILES)),
    Form(FLORENCE, "as published", _nothing),
    Form(FLORENCE, "pytorch_model.bin", _pickled),
    Form(FLORENCE, "float32", _weights(_in_float32)),
    Form(
        FLORENCE,
        "ids missing in generation_config.json",
        _generation(eos_token_id=None, decoder_start_token_id=None),
    ),
    Form(FLORENCE, "eos 1, bos 2, pad 0 in generation_config.json", _WRONG_IDS),
    Form(FLORENCE, "tokens added (51,292 rows)", add_tokens),
    Form(FLORENCE, "head and embeddings differ", _weights(_with_head(1))),
    Form(
        FLORENCE,
        "a weight missing",
        _weights(_without_weight("model.language_model.decoder.layers.0.fc1.weight")),
    ),
    Form(FLORENCE, "a file cut off", _truncated),
    Form(FLORENCE, "merged over a base in 4 bits", _quantised),
    Form(FLORENCE, "no tokenizer, no processor files", _MODEL_ALONE),
    Form(PALIGEMMA, "as transformers writes it", _nothing),
    Form(PALIGEMMA, "names and shards of 2024", _with_old_names),
    Form(PALIGEMMA, "pytorch_model.bin", _pickled),
    Form(PALIGEMMA, "head saved beside the embeddings", _weights(_with_head(0))),
    Form(PALIGEMMA, "head and embeddings differ", _weights(_with_head(1))),
    Form(PALIGEMMA, "no tokenizer, no processor files", _MODEL_ALONE),
    Form(PALIGEMMA, "merged over a base in 4 bits", _quantised),
    Form(PALIGEMMA, "big_vision's .npz", _big_vision),
)
