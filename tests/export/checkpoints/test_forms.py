"""Every form of checkpoint loads exactly, or is refused.

A form is exact if it gives the weights, generation rules and vocabulary of its base, whose answers
are those of transformers or of Microsoft's code (test_microsoft_form.py).
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoProcessor

from export.checkpoints.sources import (
    PICKLED_FILE,
    PICKLED_INDEX_FILE,
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    in_transformers_form,
    resolve_source,
)
from export.checkpoints.tensors import CheckpointTensors, check_vocabulary, empty_model
from export.errors import SourceError
from runners.tokens.text import Constraints, GenerationRules, PromptTokenizer
from tests.support.export_cli import MODELS
from tests.support.lora import name_of_2024
from tests.support.microsoft_form import (
    NUM_ROWS,
    RULES,
    MicrosoftModel,
    add_tokens,
    converted,
    microsoft_config,
    update_json,
    write_microsoft_form,
)
from wire.artifacts.manifest import GENERATION_CONFIG_FILE, TOKENIZER_FILE

Change = Callable[[Path], object]
MICROSOFT = "Florence-2, Microsoft's form"
FLORENCE = "Florence-2"
PALIGEMMA = "PaliGemma"
LM_HEAD = "language_model.lm_head.weight"


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


def write_bases(folder: Path) -> dict[str, Path]:
    microsoft = folder / "microsoft"
    microsoft.mkdir()
    write_microsoft_form(MicrosoftModel.random().weights(), microsoft)
    return {
        MICROSOFT: microsoft,
        FLORENCE: converted(microsoft, folder / "converted"),
        PALIGEMMA: MODELS / "paligemma-mini",
    }


def read(base: str, folder: Path) -> Loaded:
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


def config(**values: object) -> Change:
    return lambda folder: update_json(folder / "config.json", **values)


def generation(**values: object) -> Change:
    return lambda folder: update_json(folder / GENERATION_CONFIG_FILE, **values)


def vision(**values: object) -> Change:
    return config(vision_config=microsoft_config()["vision_config"] | values)


def weights(change: Callable[[dict[str, Tensor]], object]) -> Change:
    def changed(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors)
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    return changed


def plus_one(name: str) -> Change:
    return weights(lambda tensors: tensors.update({name: tensors[name] + 1}))


def lacking(*names: str) -> Change:
    return weights(lambda tensors: [tensors.pop(name) for name in names])


def without_files(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)

    return change


def with_head(difference: float) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        ends = ("language_model.shared.weight", "embed_tokens.weight")
        (embeddings,) = (tensors[name] for name in tensors if name.endswith(ends))
        tensors["lm_head.weight"] = embeddings + difference

    return weights(change)


def fewer_rows(tensors: dict[str, Tensor]) -> None:
    num_rows = len(tensors[LM_HEAD])
    for name, tensor in tensors.items():
        if len(tensor) == num_rows:
            tensors[name] = tensor[:-10]


def in_float32(tensors: dict[str, Tensor]) -> None:
    tensors |= {name: tensor.float() for name, tensor in tensors.items()}


def in_fp8(tensors: dict[str, Tensor]) -> None:
    tensors |= {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}


def without_text_type(folder: Path) -> None:
    text = microsoft_config()["text_config"]
    del text["model_type"]
    update_json(folder / "config.json", text_config=text, auto_map=None)


def with_moved_rules(folder: Path) -> None:
    text = microsoft_config()["text_config"]
    for name in RULES:
        del text[name]
    update_json(folder / "config.json", text_config=text)
    update_json(folder / GENERATION_CONFIG_FILE, **RULES)


def without_rules(folder: Path) -> None:
    with_moved_rules(folder)
    (folder / GENERATION_CONFIG_FILE).unlink()


def with_saved_tokens(folder: Path) -> None:
    with in_transformers_form(resolve_source(str(folder), None, "florence2", Path())) as same:
        tokenizer = json.loads((same.folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    assert tokenizer["added_tokens"].pop()["content"] == "<image>"
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer), encoding="utf-8")


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


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / PICKLED_FILE)
    (folder / WEIGHTS_FILE).unlink()


def pickled_before_torch_1_6(folder: Path) -> None:
    pickled(folder)
    file = folder / PICKLED_FILE
    tensors = torch.load(file, weights_only=True)
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


def pickled_in_shards(folder: Path) -> None:
    """Write two shards, with a matrix in another order of memory and a tied one."""
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    matrix = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[matrix] = tensors[matrix].T.contiguous().T
    tensors |= dict.fromkeys(["tied", "tied too", "tied thrice"], tensors[matrix])
    places: dict[str, str] = {}
    for number in range(2):
        file = f"pytorch_model-{number}.bin"
        shard = {name: tensors[name] for name in list(tensors)[number::2]}
        torch.save(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    index = {"weight_map": places}
    (folder / PICKLED_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def truncated(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1])


EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# The change that makes a form, and a part of its refusal; empty: it loads exactly.
FORMS: dict[str, dict[str, tuple[Change, str]]] = {
    MICROSOFT: {
        "as published": (lambda _: None, ""),
        "pytorch_model.bin": (pickled, ""),
        "float32": (weights(in_float32), ""),
        'vision_config.model_type ""': (vision(model_type=""), ""),
        "no vision_config.model_type": (vision(model_type=None), ""),
        "no text_config.model_type and auto_map": (without_text_type, ""),
        "rules in generation_config.json": (with_moved_rules, ""),
        "no rules in any file": (without_rules, ""),
        "wrong ids": (generation(bos_token_id=2, eos_token_id=1, pad_token_id=0), ""),
        "the processor's tokens saved": (with_saved_tokens, ""),
        "one of the tied weights": (
            lacking(*(f"language_model.model.{name}.weight" for name in EMBEDDINGS)),
            "",
        ),
        "head and embeddings differ": (plus_one(LM_HEAD), "the head of FOLDER differs"),
        "a bias of the logits": (plus_one("language_model.final_logits_bias"), "final_logits_bias"),
        "weights of transformers' form": (
            lacking("image_projection"),
            "KeyError('image_projection')",
        ),
        "tokenizer of another fine-tune": (weights(fewer_rows), "embeddings of 51279 tokens"),
        "no processor files": (without_files(*PROCESSOR_FILES), "lacks processor_config.json"),
    },
    FLORENCE: {
        "pytorch_model.bin from before torch 1.6": (pickled_before_torch_1_6, ""),
        "float32": (weights(in_float32), ""),
        "ids missing": (generation(eos_token_id=None, decoder_start_token_id=None), ""),
        "wrong ids": (
            generation(bos_token_id=2, eos_token_id=1, pad_token_id=0),
            "eos_token_id 1, which pads or begins answers; set it to 2",
        ),
        "tokens added (51,292 rows)": (add_tokens, ""),
        "head and embeddings differ": (with_head(1), "lm_head.weight differs"),
        "a weight missing": (
            lacking("model.language_model.decoder.layers.0.fc1.weight"),
            "decoder.layers.0.fc1.weight",
        ),
        "a file cut off": (truncated, "weights cannot be read"),
        "stored in fp8": (weights(in_fp8), "weights are stored in F8_E4M3; allowed: F32"),
        "merged over a base in 4 bits": (
            config(quantization_config={"quant_method": "bitsandbytes"}),
            "FOLDER has quantised weights",
        ),
    },
    PALIGEMMA: {
        "names and shards of 2024": (make_older, ""),
        "pytorch_model.bin in shards": (pickled_in_shards, ""),
        "head saved beside the embeddings": (with_head(0), ""),
        "head and embeddings differ": (with_head(1), "lm_head.weight differs"),
    },
}
PAIRS: list[tuple[str, str]] = []
for _base, _forms in FORMS.items():
    PAIRS += [(_base, name) for name in _forms]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Loaded]]:
    folders = write_bases(tmp_path_factory.mktemp("bases"))
    return {base: (folder, read(base, folder)) for base, folder in folders.items()}


@pytest.mark.parametrize(("base", "name"), PAIRS)
def test_forms(base: str, name: str, bases: dict[str, tuple[Path, Loaded]], tmp_path: Path) -> None:
    change, refusal = FORMS[base][name]
    source, expected = bases[base]
    folder = tmp_path / "form"
    shutil.copytree(source, folder)
    change(folder)
    if not refusal:
        assert read(base, folder).equals(expected)
        return
    with pytest.raises(SourceError) as refused:
        read(base, folder)
    message = str(refused.value).replace(str(folder), "FOLDER")
    assert refusal in message
    assert "\n" not in message


CONTROL_TOKENS = ("<loc", "<seg", "<image>")


@pytest.mark.parametrize("is_in_vocabulary", [True, False])
def test_paligemmas_control_tokens_are_those_of_transformers(
    is_in_vocabulary: bool, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(MODELS / "paligemma-mini", tmp_path / "checkpoint"))
    tokenizer = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    added = tokenizer["added_tokens"]
    moved = [token for token in added if token["content"].startswith(CONTROL_TOKENS)]
    tokenizer["added_tokens"] = [token for token in added if token not in moved]
    if is_in_vocabulary:
        tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in moved}
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer), encoding="utf-8")
    processor: Any = AutoProcessor  # transformers' factories have no types
    expected = processor.from_pretrained(folder).tokenizer
    with in_transformers_form(resolve_source(str(folder), None, "paligemma", Path())) as source:
        file = source.folder / TOKENIZER_FILE
        text = PromptTokenizer.load(file)
        masks = Constraints.load(file, [1])
    assert masks.get("start: location segmentation").allowed().any()
    for token in moved:
        token_id = expected.convert_tokens_to_ids(token["content"])
        assert text.encode([(token["content"], True)]) == [token_id]
        assert token_id not in text.encode([(token["content"], False)])
