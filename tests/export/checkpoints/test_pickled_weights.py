import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoints.pickled_weights import write_safetensors
from export.checkpoints.sources import in_transformers_form, resolve_source
from export.checkpoints.tensors import CheckpointTensors
from export.errors import SourceError
from tests.support.export_cli import MODELS

FILE = "pytorch_model.bin"


class Touch:
    """A pickle of it creates a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def test_tensors_keep_names_dtypes_and_values(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(7, 5).half(),
        "transposed": torch.randn(7, 5).T,
        "brain": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(3.0),
        "ids": torch.arange(4),
    }
    tensors["tied"] = tensors["half"]
    torch.save(tensors, tmp_path / FILE)
    write_safetensors(tmp_path / FILE, tmp_path / "out")
    written = load_file(tmp_path / "out")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)


@pytest.mark.parametrize("content", ["code", "state_dict", "expanded", "many", "fp8", "bytes"])
def test_other_content_is_refused_and_no_code_runs(content: str, tmp_path: Path) -> None:
    made = tmp_path / "made-by-the-pickle"
    contents: dict[str, object] = {
        "code": {"a": Touch(made)},
        "state_dict": {"state_dict": {}, "epoch": 3},
        "expanded": {"a": torch.ones(1).expand(10**12)},
        "many": {str(index): torch.ones(1).expand(10**6) for index in range(20)},
        "fp8": {"a": torch.ones(1).to(torch.float8_e5m2)},
    }
    if content == "bytes":
        (tmp_path / FILE).write_bytes(b"PK\x03\x04")
    else:
        torch.save(contents[content], tmp_path / FILE)
    with pytest.raises(SourceError, match="is damaged or has other content than tensors by name"):
        write_safetensors(tmp_path / FILE, tmp_path / "out")
    assert not made.exists()


def test_sharded_weights_are_those_of_one_file(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS / "florence-2-mini", tmp_path / "sharded"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for index, name in enumerate(tensors):
        places[name] = f"pytorch_model-{index % 2}.bin"
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    index_file = folder / "pytorch_model.bin.index.json"
    index_file.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    source = resolve_source(str(folder), None, "florence2", Path())
    with in_transformers_form(source) as converted:
        opened = CheckpointTensors.open(converted.folder)
        assert set(opened) == set(CheckpointTensors.open(MODELS / "florence-2-mini"))
        for name, tensor in opened.items():
            assert torch.equal(tensor, tensors[name])
