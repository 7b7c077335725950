import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checkpoints.sources import (
    WEIGHTS_INDEX_FILE,
    Source,
    check_hash,
    resolve_file,
    resolve_source,
)
from export.checkpoints.tensors import CheckpointTensors
from export.errors import SourceError
from tests.support.checkpoint_forms import FLORENCE, read
from tests.support.export_cli import MODELS, ROOT
from wire.artifacts.manifest import CALIBRATION_FILE


def test_folder_is_found_relative_to_the_root() -> None:
    source = resolve_source("models/florence-2-mini", None, "florence2", ROOT)
    assert source == Source("models/florence-2-mini", None, MODELS / "florence-2-mini")
    # model card, its pictures, measurements
    of_ours = (".md", ".png", CALIBRATION_FILE)
    names = [path.name for path in (MODELS / "florence-2-mini").iterdir()]
    read = sorted(name for name in names if not name.endswith(of_ours))
    assert [path.name for path in source.files()] == read


def test_folder_with_a_revision_is_refused() -> None:
    with pytest.raises(SourceError, match="has no revisions"):
        resolve_source("models/florence-2-mini", "main", "florence2", ROOT)


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
        resolve_source(str(tmp_path), None, "florence2", ROOT)


def test_file_that_is_not_in_the_checkpoint_is_refused() -> None:
    source = resolve_source("models/florence-2-mini", None, "florence2", ROOT)
    with pytest.raises(SourceError, match=r"does not contain vae\.npz"):
        resolve_file("vae.npz", source)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "florence-2-mini", tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    "file_name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"]
)
def test_checkpoint_without_a_file_is_refused(checkpoint: Path, file_name: str) -> None:
    (checkpoint / file_name).unlink()
    with pytest.raises(SourceError, match=f"lacks .*{file_name}"):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


@pytest.mark.parametrize("file_name", ["tokenizer.json", "processor_config.json"])
def test_checkpoint_without_its_processor_names_the_base_to_copy_it_from(
    checkpoint: Path, file_name: str
) -> None:
    (checkpoint / file_name).unlink()
    expected = rf"lacks {file_name}.*: copy .* from its base florence-community/Florence-2-base,"
    with pytest.raises(SourceError, match=expected):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


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
@pytest.mark.parametrize("has_config", [True, False])
def test_other_programs_files_are_named(
    file_name: str, message: str, has_config: bool, tmp_path: Path
) -> None:
    if has_config:
        shutil.copy(MODELS / "florence-2-mini" / "config.json", tmp_path)
    (tmp_path / file_name).parent.mkdir(exist_ok=True)
    (tmp_path / file_name).write_bytes(b"")
    config = "" if has_config else "config.json, "
    lacks = rf"lacks {config}model\.safetensors or pytorch_model\.bin; it has "
    with pytest.raises(SourceError, match=f"{lacks}{file_name}, .*{message}"):
        resolve_source(str(tmp_path), None, "florence2", ROOT)


def test_a_file_as_the_source_is_named() -> None:
    with pytest.raises(SourceError, match=r"^a/b\.gguf is b\.gguf, a quantised model of llama"):
        resolve_source("a/b.gguf", None, "paligemma", ROOT)


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
    with pytest.raises(SourceError) as caught:
        resolve_source(str(folder), None, "florence2", ROOT)
    assert str(caught.value) == (
        f"{folder} is a LoRA adapter of {base}, not a checkpoint: add the entry {{id: my-tune,"
        f" adapter_of: {adapter_of}, source: {folder}}} to the catalog after that of its base;"
        " export the base, then my-tune"
    )


def test_an_adapters_configuration_beside_weights_is_ignored(checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    assert resolve_source(str(checkpoint), None, "florence2", ROOT).folder == checkpoint


def test_averaged_weights_beside_the_model_are_not_read(checkpoint: Path) -> None:
    expected = CheckpointTensors.open(checkpoint)
    source = resolve_source(str(checkpoint), None, "florence2", ROOT)
    hashes = source.hashes()
    tensors = load_file(checkpoint / "model.safetensors")
    averaged = {name: tensor + 1 for name, tensor in tensors.items()}
    for name in ("model_ema.safetensors", "model-00001-of-00001.safetensors"):
        save_file(averaged, checkpoint / name)
    index = {"weight_map": dict.fromkeys(averaged, "model-00001-of-00001.safetensors")}
    (checkpoint / WEIGHTS_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    assert source.hashes() == hashes
    found = CheckpointTensors.open(checkpoint)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def _spoilt(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[-1] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_spoilt(math.nan), "has values that are infinite or not a number"),
        (_spoilt(math.inf), "has values that are infinite or not a number"),
        (_spoilt(-math.inf), "has values that are infinite or not a number"),
        (
            lambda tensor: tensor.to(torch.float8_e4m3fn),
            "is stored in F8_E4M3; allowed are float32",
        ),
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


def test_checkpoint_without_one_of_its_shards_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}
    (checkpoint / WEIGHTS_INDEX_FILE).write_text(
        json.dumps({"weight_map": shards}), encoding="utf-8"
    )
    with pytest.raises(SourceError, match=r"lacks model-00002-of-00002\.safetensors$"):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", '{"weight_map": {"a": "../other.safetensors"}}', '{"weight_map": {"a": 1}}'],
)
def test_an_invalid_index_is_refused(checkpoint: Path, index: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / WEIGHTS_INDEX_FILE).write_text(index, encoding="utf-8")
    with pytest.raises(SourceError, match=f"^{WEIGHTS_INDEX_FILE} is not an index of weights: "):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"model\.safetensors of .* is damaged or incomplete"):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


def test_hub_file_with_another_hash_is_refused_with_both(tmp_path: Path) -> None:
    (tmp_path / "vae.npz").write_bytes(b"")
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    check_hash(tmp_path / "vae.npz", f"hf://owner/name/vae.npz#sha256={nothing}", nothing)
    with pytest.raises(
        SourceError,
        match=rf"^hf://owner/name/vae\.npz has sha256 {nothing}; the catalog expects 00",
    ):
        check_hash(tmp_path / "vae.npz", "hf://owner/name/vae.npz#sha256=00", "00")
