"""Weights in torch's pickled format (`pytorch_model*.bin`), rewritten as safetensors.

A pickle can name functions to call. torch's `weights_only` unpickler admits tensors alone, and it
runs in a process that can only compute and write to a pipe (imaging/sandbox.py): no files,
no network, no programs, and no token of the hub in its environment.

`python -m export.checkpoints.pickled_weights FILE` is that process; safetensors go to stdout.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import psutil
from safetensors import safe_open

from export.errors import SourceError
from imaging.sandbox import confine

if TYPE_CHECKING:
    from torch import Tensor

_ROOT = Path(__file__).parents[2]
_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
_MAX_REASON_CHARS = 300
_WORKING_BYTES = 1 << 30  # beside the tensors: the directory of the archive, the pickle, one copy
_MAX_PICKLE_BYTES = 64 << 20  # names, shapes and strides: far more than any model has
_DTYPES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.bool": "BOOL",
}


def write_safetensors(pickled: Path, output: Path) -> list[str]:
    """Write the tensors of a pickled file as safetensors; return their names, which stay the same.

    Raise `SourceError` if it contains anything else, or is damaged.
    """
    _check_archive(pickled)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(pickled.absolute())],
        cwd=_ROOT,
        env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process, output.open("wb") as file:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            shutil.copyfileobj(process.stdout, file, 1 << 20)
            reason = " ".join(process.stderr.read().decode(errors="replace").split())
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        reason = reason[:_MAX_REASON_CHARS] or f"its process ended with {process.returncode}"
        raise SourceError(f"{pickled.name} is refused: {reason}")
    with safe_open(output, "numpy") as tensors:
        return list(tensors.keys())


def _check_archive(pickled: Path) -> None:
    """Raise `SourceError` unless the file is a zip archive that unpacks to its own size."""
    try:
        with zipfile.ZipFile(pickled) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"{pickled.name} is damaged, incomplete or of a torch before 1.6: {error}"
        ) from error
    is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if is_packed or sum(member.file_size for member in members) > pickled.stat().st_size:
        raise SourceError(f"{pickled.name} is compressed; torch.save writes archives that are not")
    pickles = [member for member in members if member.filename.endswith(".pkl")]
    if sum(member.file_size for member in pickles) > _MAX_PICKLE_BYTES:
        raise SourceError(
            f"{pickled.name} has a pickle of more than {_MAX_PICKLE_BYTES >> 20} MB beside its"
            " tensors"
        )


def main(pickled: Path) -> int:
    """Read a file in the sandbox and write its tensors to stdout; return the exit status."""
    import torch

    torch.set_num_threads(1)
    # load every module that reading needs: the sandbox opens no file
    saved = io.BytesIO()
    torch.save({"one": torch.zeros(2, dtype=torch.bfloat16)}, saved)
    saved.seek(0)
    _write(torch.load(saved, map_location="cpu", weights_only=True), io.BytesIO())
    own_bytes = psutil.Process().memory_info().vms
    with pickled.open("rb") as file:
        confine(own_bytes + 2 * pickled.stat().st_size + _WORKING_BYTES)
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            _write(_checked(tensors), sys.stdout.buffer)
        except Exception as error:  # the pickle decides what is raised
            sys.stderr.write(_reason(error))
            return 1
    sys.stdout.flush()
    return 0


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnpicklingError":
        return "it contains other objects than tensors, or is damaged"
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def _checked(tensors: object) -> Mapping[str, "Tensor"]:
    import torch

    if not isinstance(tensors, dict):
        raise TypeError(f"it holds a {type(tensors).__name__}; allowed: tensors by name")
    if isinstance(tensors.get("state_dict"), dict):
        raise TypeError(
            "it holds a state_dict beside other values, as Lightning writes them; save the"
            " state_dict alone: torch.save(checkpoint['state_dict'], 'pytorch_model.bin')"
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name!r} is a {type(tensor).__name__}; allowed: tensors by name, as"
                " model.state_dict() has them"
            )
        if str(tensor.dtype) not in _DTYPES or tensor.layout != torch.strided:
            raise TypeError(
                f"{name} is a {tensor.layout} tensor of {tensor.dtype}; allowed: dense ones of"
                f" {', '.join(_DTYPES)}"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise TypeError(f"{name} has more elements than its storage; allowed: whole tensors")
    return tensors


def _write(tensors: Mapping[str, "Tensor"], output: BinaryIO) -> None:
    """Write safetensors' format tensor by tensor; its library would hold all of them twice."""
    import torch

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        offsets = [start, start + tensor.nbytes]
        header[name] = {
            "dtype": _DTYPES[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        start = offsets[1]
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    output.write(len(encoded).to_bytes(8, "little") + encoded)
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().reshape(-1)
        output.write(flat.view(torch.uint8).numpy().data)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
