"""Memory and disk that an export needs, estimated from the catalog before anything is downloaded.

A model is large if its float32 weights would not fit beside an export: its encoders are made in a
child process, and its float32 decoder and reference run layer by layer.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from export.errors import ExportError
from tasks.catalog import CatalogEntry
from wire.artifacts.model_store import store_home

# A large model's layers beyond this size (float32) are read at each use.
MAX_RESIDENT_BYTES = 4 << 30

_GB = 1e9
_LARGE_PARAMETERS = 1.5e9
_LIBRARIES_BYTES = 1.2e9  # Python with torch, transformers and onnx
# Of a model that is not large, bytes for each parameter. Memory: its float32 weights and four
# copies of its encoder's graph, in large pages. Disk: the encoder in float32 twice, of batches and
# one image, and in int8; the decoder in 16 bits.
_MEMORY_FACTOR = 14.6
_DISK_FACTOR = 5.15
_SIGLIP_PARAMETERS = 0.42e9  # PaliGemma's vision encoder, in every size
_EMBEDDING_FACTOR = 0.8  # of a large model: float32 beside the streamed layers
_ACTIVATIONS_BYTES = 1.5e9  # prefill of all probes
# SigLIP's attention scores of an image grow with the fourth power of its side: 1 GB at 896 px
_SIGLIP_HEADS = 16
_PATCH_PX = 14
_SCORES_COPIES = 7  # at most, in any check


@dataclass(frozen=True, slots=True)
class Needs:
    """The expected needs of one export."""

    is_large: bool
    memory_bytes: float
    disk_bytes: float  # artifacts, in the folder of temporary files, then in the store

    def check_host(self) -> None:
        """Raise `ExportError` if this host has too little memory or disk."""
        available_bytes = available_memory_bytes()
        if available_bytes < self.memory_bytes:
            raise ExportError(
                f"the export needs {self.memory_bytes / _GB:.1f} GB of memory;"
                f" {available_bytes / _GB:.1f} GB are available: export on a larger host and copy"
                " BENTOML_HOME"
            )
        for folder in (Path(tempfile.gettempdir()), store_home()):
            if (free_bytes := free_disk_bytes(folder)) < self.disk_bytes:
                raise ExportError(
                    f"the export needs {self.disk_bytes / _GB:.3f} GB of disk;"
                    f" {free_bytes / _GB:.3f} GB are free in {folder}: set BENTOML_HOME and TMPDIR"
                    " to a larger disk"
                )


def needs_of(entry: CatalogEntry) -> Needs:
    """Return the needs of the export of a model; the constants are estimates."""
    parameters = float(entry.parameters)
    is_large = parameters > _LARGE_PARAMETERS
    memory_bytes = _MEMORY_FACTOR * parameters
    disk_bytes = _DISK_FACTOR * parameters
    if is_large:
        streamed_bytes = MAX_RESIDENT_BYTES + _EMBEDDING_FACTOR * parameters
        checks_bytes = max(streamed_bytes, 2 * parameters) + _ACTIVATIONS_BYTES  # 2: bfloat16
        memory_bytes = max(16 * _SIGLIP_PARAMETERS, checks_bytes)
        disk_bytes = 7 * _SIGLIP_PARAMETERS + 2 * parameters
    if entry.family == "paligemma":
        scores_bytes = 4.0 * _SIGLIP_HEADS * (entry.resolution // _PATCH_PX) ** 4
        memory_bytes += _SCORES_COPIES * scores_bytes
    return Needs(is_large, _LIBRARIES_BYTES + memory_bytes, disk_bytes)


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory that this host has available, at most the limit of its container."""
    available_bytes: int = psutil.virtual_memory().available
    try:
        limit_bytes = int((cgroup / "memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max"
        return available_bytes
    return min(available_bytes, limit_bytes)


def free_disk_bytes(folder: Path) -> float:
    """Return the free bytes of the disk of `folder`, which may not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)
