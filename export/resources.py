"""Memory, disk and time that an export needs, estimated from the catalog before anything is
downloaded.

A model is large if its float32 weights would not fit beside an export: its encoders are made in a
child process and its float32 decoder and reference run layer by layer. The constants are estimates.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.errors import ResourceError
from tasks.catalog import CatalogEntry
from wire.artifacts.model_store import store_home

# A large model's layers beyond this size (float32) are read at each use.
MAX_RESIDENT_BYTES = 4 << 30

_GB = 1e9
_MB = 1e6
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
# The check's time grows up to this size: larger models answer fewer photographs.
_FULL_CHECK_PARAMETERS = 0.25e9
_CORE_SECONDS = {
    "fixed": 15.0,
    "per gigaparameter": 1000.0,
    "of the check, per gigaparameter": 800.0,
    "per gigabyte of attention scores": 4000.0,
}


@dataclass(frozen=True, slots=True)
class Needs:
    """The expected needs of one export."""

    is_large: bool
    memory_bytes: float
    disk_bytes: float  # artifacts, in the folder of temporary files, then in the store
    minutes: float

    def __str__(self) -> str:
        time = f"about {self.minutes:.0f} minutes" if self.minutes >= 1 else "about a minute"
        return (
            f"the export needs {_size(self.memory_bytes)} of memory, {_size(self.disk_bytes)} of"
            f" disk and {time}"
        )

    def check(self, memory_bytes: float | None, disks: Mapping[Path, float]) -> None:
        """Raise `ResourceError` if memory or disk is too small; unknown memory is None."""
        if memory_bytes is not None and memory_bytes < self.memory_bytes:
            raise ResourceError(
                f"the export needs {_size(self.memory_bytes)} of memory; {_size(memory_bytes)} are"
                " available here: stop other processes, raise the container's limit, or export on"
                " a larger host and copy BENTOML_HOME"
            )
        for folder, free_bytes in disks.items():
            if free_bytes < self.disk_bytes:
                raise ResourceError(
                    f"the export needs {_size(self.disk_bytes)} of disk; {_size(free_bytes)} are"
                    f" free in {folder}: free some, or set BENTOML_HOME and TMPDIR to a larger disk"
                )


def needs_of(entry: CatalogEntry, num_cores: int) -> Needs:
    """Return the needs of the export of a model on `num_cores` cores."""
    parameters = float(entry.parameters)
    is_large = parameters > _LARGE_PARAMETERS
    encoder = min(
        0.45 * parameters, _SIGLIP_PARAMETERS if entry.family == "paligemma" else parameters
    )
    decoder = parameters - encoder
    peaks: tuple[float, ...]
    if is_large:
        peaks = (
            _ENCODER_COPIES * 4 * encoder,
            MAX_RESIDENT_BYTES + 4 * _EMBEDDING_PARAMETERS * parameters + _ACTIVATIONS_BYTES,
            # bfloat16 decoder; int8 with its float32 embedding is smaller
            2 * decoder + _ACTIVATIONS_BYTES,
        )
    else:
        copies = 4 * parameters + _ENCODER_COPIES * 4 * encoder
        peaks = (_LARGE_PAGES * copies, 4 * decoder + 3 * _ACTIVATIONS_BYTES * decoder / _GB)
    scores = 0.0
    if entry.family == "paligemma":
        scores = 4.0 * _SIGLIP_HEADS * (entry.resolution // _PATCH_PX) ** 4
    memory = _LIBRARIES_BYTES + max(peaks) + _SCORES_COPIES * scores
    # Encoder in float32, int8 and float16; at first Florence-2's float32 graph of one image takes
    # the place of float16.
    bytes_per_weight = 4 + 1 + (4 if entry.family == "florence2" else 2)
    files = bytes_per_weight * encoder + 2 * decoder  # decoder as stored, in 16 bits
    checked = min(parameters, _FULL_CHECK_PARAMETERS)
    seconds = _CORE_SECONDS["fixed"] + _CORE_SECONDS["per gigaparameter"] * parameters / _GB
    seconds += _CORE_SECONDS["of the check, per gigaparameter"] * checked / _GB
    seconds += _CORE_SECONDS["per gigabyte of attention scores"] * scores / _GB
    return Needs(is_large, memory, files, seconds / num_cores / 60)


def check_host(needs: Needs) -> None:
    """Raise `ResourceError` if this host has too little memory or disk."""
    folders = {Path(tempfile.gettempdir()), store_home()}
    needs.check(
        available_memory_bytes(), {folder: free_disk_bytes(folder) for folder in sorted(folders)}
    )


def free_disk_bytes(folder: Path) -> float:
    """Return the free bytes of the disk of `folder`, which may not exist yet."""
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    return float(shutil.disk_usage(existing).free)


def available_memory_bytes(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return the memory still available: the host's, or less by the control group's limit.

    None where the system does not tell, as on macOS.
    """
    try:
        rows = dict(
            row.split(":", 1) for row in (proc / "meminfo").read_text(encoding="ascii").splitlines()
        )
    except OSError:
        return None
    available = float(rows["MemAvailable"].split()[0]) * 1024
    return min([available, *_cgroup_rooms(proc, cgroups)])


def _cgroup_rooms(proc: Path, cgroups: Path) -> list[float]:
    """Return the bytes left in each control group (version 2); page cache counts as free."""
    try:
        own = (
            (proc / "self" / "cgroup")
            .read_text(encoding="ascii")
            .splitlines()[0]
            .rpartition(":")[2]
            .strip("/")
        )
    except (OSError, IndexError):
        return []
    folder = cgroups / own
    rooms = []
    for group in (folder, *folder.parents):
        try:
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            stat = dict(
                row.split()
                for row in (group / "memory.stat").read_text(encoding="ascii").splitlines()
            )
        except (OSError, ValueError):  # no such group, or "max"
            continue
        rooms.append(
            float(
                limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
            )
        )
    return rooms


def _size(num_bytes: float) -> str:
    return f"{num_bytes / _GB:.1f} GB" if num_bytes >= _GB / 10 else f"{num_bytes / _MB:.0f} MB"
