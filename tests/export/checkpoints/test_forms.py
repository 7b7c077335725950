"""Every form of checkpoint loads exactly, or is refused.

A form is exact if it gives the weights, generation rules and vocabulary of its base, whose answers
are those of transformers or of Microsoft's code (test_microsoft_form.py).
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoints.sources import (
    PICKLED_FILE,
    WEIGHTS_FILE,
    in_transformers_form,
    resolve_source,
)
from export.errors import SourceError
from tests.support.checkpoint_forms import (
    FLORENCE,
    MICROSOFT,
    PALIGEMMA,
    Base,
    Loaded,
    add_tokens,
    make_older,
    read,
    save_weights,
    write_base,
)
from tests.support.microsoft_form import RULES, microsoft_config, update_json
from wire.artifacts.manifest import GENERATION_CONFIG_FILE, TOKENIZER_FILE

Change = Callable[[Path], object]
LM_HEAD = "language_model.lm_head.weight"


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
        save_weights(folder, tensors)

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


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / PICKLED_FILE)
    (folder / WEIGHTS_FILE).unlink()


def truncated(folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1])


EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
MODEL_ALONE = without_files(TOKENIZER_FILE, *PROCESSOR_FILES)
# The change that makes a form, and a part of its refusal; empty: it loads exactly.
FORMS: dict[Base, dict[str, tuple[Change, str]]] = {
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
        "pytorch_model.bin": (pickled, ""),
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
        "no tokenizer, no processor files": (MODEL_ALONE, "lacks tokenizer.json, processor"),
    },
    PALIGEMMA: {
        "names and shards of 2024": (make_older, ""),
        "pytorch_model.bin": (pickled, ""),
        "head saved beside the embeddings": (with_head(0), ""),
        "head and embeddings differ": (with_head(1), "lm_head.weight differs"),
        "no tokenizer, no processor files": (MODEL_ALONE, "lacks tokenizer.json, processor"),
    },
}
PAIRS = [(base, name) for base, forms in FORMS.items() for name in forms]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Base, tuple[Path, Loaded]]:
    written: dict[Base, tuple[Path, Loaded]] = {}
    for base in FORMS:
        folder = write_base(base, tmp_path_factory.mktemp("bases") / "base")
        written[base] = (folder, read(base, folder))
    return written


def assert_loaded(
    base: Base,
    change: Change,
    refusal: str,
    bases: dict[Base, tuple[Path, Loaded]],
    folder: Path,
) -> None:
    source, expected = bases[base]
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


@pytest.mark.parametrize(("base", "name"), PAIRS)
def test_forms(
    base: Base, name: str, bases: dict[Base, tuple[Path, Loaded]], tmp_path: Path
) -> None:
    change, refusal = FORMS[base][name]
    assert_loaded(base, change, refusal, bases, tmp_path / "form")
