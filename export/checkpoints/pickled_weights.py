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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import psutil

from export.errors import SourceError, one_line
from imaging.sandbox import confine

if TYPE_CHECKING:
    from torch import Tensor

_ROOT = Path(__file__).parents[2]
_VARIABLES = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
_WORKING_BYTES = 1 << 30  # beside the tensors: the directory of the archive, the pickle, one copy
_MAX_GROWTH = 8  # tied weights are stored once, and written under each name
_DTYPES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.bool": "BOOL",
}


def write_safetensors(pickled: Path, output: Path) -> None:
    """Write a pickled file's tensors; raise `SourceError` if it has other content or is damaged."""
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
            reason = process.stderr.read().decode(errors="replace")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise SourceError(
            f"{pickled.name} is damaged or has other content than tensors by name:"
            f" {reason or process.returncode}"
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
    file_bytes = pickled.stat().st_size
    with pickled.open("rb") as file:
        confine(own_bytes + 2 * file_bytes + _WORKING_BYTES)
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            num_bytes = sum(tensor.nbytes for tensor in tensors.values())
            if num_bytes > _MAX_GROWTH * file_bytes:  # expanded ones would fill the disk
                raise ValueError(f"its tensors have {num_bytes} bytes")
            _write(tensors, sys.stdout.buffer)
        except Exception as error:  # the pickle decides what is raised
            sys.stderr.write(one_line(error))
            return 1
    sys.stdout.flush()
    return 0


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
