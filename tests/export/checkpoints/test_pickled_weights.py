import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoints.pickled_weights import write_safetensors
from export.errors import SourceError

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
    assert write_safetensors(tmp_path / FILE, tmp_path / "out") == sorted(tensors)
    written = load_file(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        name: tensor.dtype for name, tensor in tensors.items()
    }
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("code", "other objects than tensors"),
        ({"a": torch.ones(1).expand(10**12)}, "a has more elements than its storage"),
        ({"state_dict": {}, "epoch": 3}, r"it holds a state_dict .*; save the state_dict alone"),
        ({"a": torch.ones(1).to(torch.float8_e5m2)}, "a is a .* tensor of torch.float8_e5m2;"),
    ],
    ids=["code", "expanded", "Lightning", "fp8"],
)
def test_other_content_is_refused_and_no_code_runs(
    content: object, message: str, tmp_path: Path
) -> None:
    made = tmp_path / "made-by-the-pickle"
    torch.save({"a": Touch(made)} if content == "code" else content, tmp_path / FILE)
    with pytest.raises(SourceError, match=message):
        write_safetensors(tmp_path / FILE, tmp_path / "out")
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"pickle", b"PK\x03\x04"])
def test_file_that_is_not_an_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(SourceError, match=r"is damaged, incomplete or of a torch before 1\.6"):
        write_safetensors(tmp_path / FILE, tmp_path / "out")
