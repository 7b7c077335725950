"""Folders as sources; further refusals are among the forms (test_forms.py) and the hub's."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoints.sources import WEIGHTS_INDEX_FILE, Source, resolve_file, resolve_source
from export.checkpoints.tensors import CheckpointTensors
from export.errors import SourceError
from tests.support.checkpoint_forms import FLORENCE, read
from tests.support.export_cli import MODELS, ROOT
from wire.artifacts.manifest import CALIBRATION_FILE

NAME = "models/florence-2-mini"


def resolved(name: object, revision: str | None = None) -> Source:
    return resolve_source(str(name), revision, "florence2", ROOT)


def test_a_folder_is_found_relative_to_the_root() -> None:
    source = resolved(NAME)
    assert source == Source(NAME, None, MODELS / "florence-2-mini")
    # model card, its pictures, measurements
    of_ours = (".md", ".png", CALIBRATION_FILE)
    names = [path.name for path in source.folder.iterdir() if not path.name.endswith(of_ours)]
    assert [path.name for path in source.files()] == sorted(names)
    with pytest.raises(SourceError, match=r"does not contain vae\.npz"):
        resolve_file("vae.npz", source)


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        (NAME, "main", "has no revisions"),
        ("a/b.gguf", None, r"^a/b\.gguf is b\.gguf, a quantised model of llama"),
    ],
)
def test_other_names_are_refused(name: str, revision: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolved(name, revision)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{}",
        '{"model_type": "bert"}',
        '{"model_type": "florence2", "vision_config": 1, "text_config": {}}',
        '{"model_type": "florence2", "vision_config": {"model_type": "vit"}, "text_config": {}}',
    ],
)
def test_config_without_a_known_family_is_refused(tmp_path: Path, config: str) -> None:
    for name in ("tokenizer.json", "processor_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(SourceError, match=r"model_type|checkpoint of bert|vision_config"):
        resolved(tmp_path)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "florence-2-mini", tmp_path / "checkpoint"))


BASE = ".*: copy .* from its base florence-community/Florence-2-base,"


@pytest.mark.parametrize(
    ("file_name", "remedy"),
    [
        ("config.json", ""),
        ("tokenizer.json", BASE),
        ("processor_config.json", BASE),
        ("model.safetensors", ""),
    ],
)
def test_a_missing_file_is_named(checkpoint: Path, file_name: str, remedy: str) -> None:
    (checkpoint / file_name).unlink()
    with pytest.raises(SourceError, match=f"lacks .*{file_name}{remedy}"):
        resolved(checkpoint)


@pytest.mark.parametrize(
    ("file_name", "message"),
    [
        ("onnx/encoder.onnx", "an ONNX graph: the export makes its own; give the checkpoint in"),
        ("tune.Q4.gguf", "a quantised model of llama.cpp: give the checkpoint in safetensors"),
        ("openvino_decoder_model.xml", "a graph of OpenVINO: give the checkpoint in safetensors"),
        ("model.pt", r"a file of torch: load it .* call save_pretrained\(FOLDER\)"),
        ("last.ckpt", "a checkpoint of Lightning: save its state_dict alone, by torch.save"),
        ("adapter_model.bin", r"a pickled adapter: load it with PEFT and call save_pretrained"),
        ("checkpoint-500/model.safetensors", "a training below it: give the folder of one"),
        ("pt_224.bf16.npz", "of big_vision: run transformers' .*/convert_paligemma_weights"),
    ],
)
def test_other_programs_files_are_named(file_name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file_name).parent.mkdir(exist_ok=True)
    (tmp_path / file_name).write_bytes(b"")
    lacks = r"model\.safetensors or pytorch_model\.bin; it has "
    with pytest.raises(SourceError, match=rf"lacks config\.json, {lacks}{file_name}, .*{message}"):
        resolved(tmp_path)
    shutil.copy(MODELS / "florence-2-mini" / "config.json", tmp_path)
    with pytest.raises(SourceError, match=f"lacks {lacks}{file_name}"):
        resolved(tmp_path)


@pytest.mark.parametrize(
    ("base", "adapter_of"),
    [
        ("microsoft/Florence-2-base-ft", "florence-2-base-ft"),
        ("google/paligemma-3b-ft-vqav2-448", "paligemma-3b-ft-vqav2-448"),
        ("/content/merged", "ID OF ITS BASE"),
    ],
)
def test_an_adapter_is_refused_with_its_entry(base: str, adapter_of: str, tmp_path: Path) -> None:
    folder = tmp_path / "My_Tune"
    folder.mkdir()
    config = json.dumps({"base_model_name_or_path": base})
    (folder / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(SourceError) as refused:
        resolved(folder)
    assert str(refused.value) == (
        f"{folder} is a LoRA adapter of {base}, not a checkpoint: add the entry {{id: my-tune,"
        f" adapter_of: {adapter_of}, source: {folder}}} to the catalog after that of its base;"
        " export the base, then my-tune"
    )


def test_files_beside_the_weights_are_ignored(checkpoint: Path) -> None:
    expected = CheckpointTensors.open(checkpoint)
    source = resolved(checkpoint)
    hashes = source.hashes()
    (checkpoint / "adapter_config.json").write_text("{}")
    tensors = load_file(checkpoint / "model.safetensors")
    averaged = {name: tensor + 1 for name, tensor in tensors.items()}
    for name in ("model_ema.safetensors", "model-00001-of-00001.safetensors"):
        save_file(averaged, checkpoint / name)
    index = {"weight_map": dict.fromkeys(averaged, "model-00001-of-00001.safetensors")}
    (checkpoint / WEIGHTS_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    assert resolved(checkpoint).hashes() == hashes
    opened = CheckpointTensors.open(checkpoint)
    assert opened.keys() == expected.keys()
    for name, tensor in opened.items():
        assert torch.equal(tensor, expected[name])


def spoilt(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([tensor[:-1], torch.full_like(tensor[-1:], value)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoilt(math.nan), "has values that are infinite or not a number"),
        (spoilt(math.inf), "has values that are infinite or not a number"),
        (spoilt(-math.inf), "has values that are infinite or not a number"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is stored in F8_E4M3; allowed are float"),
        (lambda tensor: tensor[:-1], r"has the shape \(127,\); that of .* is \(128,\): copy the"),
    ],
)
def test_unusable_weights_are_named(
    change: Callable[[Tensor], Tensor], message: str, checkpoint: Path
) -> None:
    name = "model.multi_modal_projector.image_proj_norm.bias"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(SourceError, match=f"^{name} (of .*)?{message}"):
        read(FLORENCE, checkpoint)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "1.safetensors"}}', r"lacks 1\.safetensors$"),
        ("{", f"^{WEIGHTS_INDEX_FILE} is not an index of weights: "),
        ("[]", "is not an index"),
        ('{"weight_map": {"a": "../other.safetensors"}}', "is not an index"),
        ('{"weight_map": {"a": 1}}', "is not an index"),
    ],
)
def test_an_incomplete_index_is_refused(checkpoint: Path, index: str, message: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / WEIGHTS_INDEX_FILE).write_text(index, encoding="utf-8")
    with pytest.raises(SourceError, match=message):
        resolved(checkpoint)
