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
# PaliGemma's vision encoder, in every size; Florence-2's is two fifths of its model
_SIGLIP_PARAMETERS = 0.42e9
_EMBEDDING_PARAMETERS = 0.2  # a large model's share at most: float32 beside the streamed layers
_ENCODER_COPIES = 4  # copies of the float32 graph while it is made
# Large pages of weights and graphs: Florence-2-base took 4.5 GB with them, 3.7 GB without.
_LARGE_PAGES = 1.3
_ACTIVATIONS_BYTES = 1.5e9  # prefill of all probes
# SigLIP's attention scores of an image grow with the fourth power of its side: 1 GB at 896 px
_SIGLIP_HEADS = 16
_PATCH_PX = 14
_SCORES_COPIES = 7  # while a layer runs in float16's arithmetic
_FILES_BYTES_PER_WEIGHT = 9  # an encoder in float32 twice, of batches and one image, and in int8


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
    most = _SIGLIP_PARAMETERS if entry.family == "paligemma" else parameters
    encoder = min(0.45 * parameters, most)
    decoder = parameters - encoder
    encoder_bytes = _ENCODER_COPIES * 4 * encoder
    if is_large:
        streamed_bytes = MAX_RESIDENT_BYTES + 4 * _EMBEDDING_PARAMETERS * parameters
        # a bfloat16 decoder; int8 with its float32 embedding is smaller
        peak_bytes = max(encoder_bytes, max(streamed_bytes, 2 * decoder) + _ACTIVATIONS_BYTES)
    else:
        checks_bytes = 4 * decoder + 3 * _ACTIVATIONS_BYTES * decoder / _GB
        peak_bytes = max(_LARGE_PAGES * (4 * parameters + encoder_bytes), checks_bytes)
    if entry.family == "paligemma":
        scores_bytes = 4.0 * _SIGLIP_HEADS * (entry.resolution // _PATCH_PX) ** 4
        peak_bytes += _SCORES_COPIES * scores_bytes
    # the decoder as stored, in 16 bits
    files_bytes = _FILES_BYTES_PER_WEIGHT * encoder + 2 * decoder
    return Needs(is_large, _LIBRARIES_BYTES + peak_bytes, files_bytes)


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
