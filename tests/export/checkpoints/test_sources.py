"""Folders as sources; further refusals are among the forms (test_forms.py) and the hub's."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checkpoints.sources import (
    PICKLED_FILE,
    WEIGHTS_INDEX_FILE,
    Source,
    in_transformers_form,
    resolve_file,
    resolve_source,
)
from export.checkpoints.tensors import CheckpointTensors
from export.errors import SourceError
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


def test_folder_has_no_revisions() -> None:
    with pytest.raises(SourceError, match="has no revisions"):
        resolved(NAME, "main")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{}",
        '{"model_type": "bert"}',
        '{"model_type": "florence2", "vision_config": 1, "text_config": {}}',
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


@pytest.mark.parametrize(
    "file_name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"]
)
def test_a_missing_file_is_named(checkpoint: Path, file_name: str) -> None:
    (checkpoint / file_name).unlink()
    with pytest.raises(SourceError, match=file_name):
        resolved(checkpoint)


def test_adapter_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(SourceError, match="is a LoRA adapter: export its base, and add an entry"):
        resolved(tmp_path)


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


def test_shape_of_another_configuration_is_named(checkpoint: Path) -> None:
    name = "model.multi_modal_projector.image_proj_norm.bias"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(SourceError, match=rf"^{name} has the shape \(127,\); .* is \(128,\)"):
        CheckpointTensors.open(checkpoint)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "1.safetensors"}}', r"lacks 1\.safetensors:"),
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


class MakesFolder:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["code", "training state", "no archive"])
def test_a_pickle_of_anything_but_tensors_is_refused(
    content: str, checkpoint: Path, tmp_path: Path
) -> None:
    contents: dict[str, object] = {
        "code": {"a": MakesFolder(tmp_path / "made")},
        "training state": {"state_dict": {}, "epoch": 3},
    }
    (checkpoint / "model.safetensors").unlink()
    file = checkpoint / PICKLED_FILE
    file.write_bytes(b"PK\x03\x04")
    if content in contents:
        torch.save(contents[content], file)
    message = rf"^{PICKLED_FILE} is damaged or has other content than tensors by name: \w+: "
    with pytest.raises(SourceError, match=message), in_transformers_form(resolved(checkpoint)):
        pass
    assert not (tmp_path / "made").exists()
