"""Memory, disk and time that an export needs, and the memory of the released models when served.

Both follow from the catalog, before anything is downloaded. A model is large if its float32 weights
would not fit beside an export: its encoders are made in a child process and its float32 decoder and
reference run layer by layer. `python -m export.resources` prints the table of docs/operations.md.
Sizes are counted on the published configurations; the other constants are estimates.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.checkpoints.bases import CATALOG_FILE
from export.errors import ExportError
from runners.options import CUDA_RESERVE_BYTES, default_positions, slots_that_fit
from tasks.catalog import CatalogEntry, Device, Part, Precision, load_catalog
from wire.artifacts.model_store import store_home

# A large model's layers beyond this size (float32) are read at each use.
MAX_RESIDENT_BYTES = 4 << 30

BYTES_PER_WEIGHT: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

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
        """Raise `ExportError` if memory or disk is too small; unknown memory is None."""
        if memory_bytes is not None and memory_bytes < self.memory_bytes:
            raise ExportError(
                f"the export needs {_size(self.memory_bytes)} of memory; {_size(memory_bytes)} are"
                " available here: stop other processes, raise the container's limit, or export on"
                " a larger host and copy BENTOML_HOME"
            )
        for folder, free_bytes in disks.items():
            if free_bytes < self.disk_bytes:
                raise ExportError(
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
    """Raise `ExportError` if this host has too little memory or disk."""
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
        line = (proc / "self" / "cgroup").read_text(encoding="ascii").splitlines()[0]
    except (OSError, IndexError):
        return []
    folder = cgroups / line.rpartition(":")[2].strip("/")
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


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The numbers of weights of a released size, and what its sequences and adapters take."""

    encoder: int  # at PaliGemma's 224 px
    encoder_matrices: int  # of these, in linear layers
    decoder_matrices: int
    head: int  # tied to the embeddings: int8 adds a quantised copy
    position_values: int  # of the KV cache, for a slot and a position
    vocabulary: int
    pool_bytes: int  # a runner's whole pool of adapters, on a card


# Beginning of an entry's id -> size
SIZES = {
    "florence-2-base": ModelSize(
        91_207_168, 84_541_440, 99_090_432, 39_419_904, 18_432, 51_328, 163_512_320
    ),
    "florence-2-large": ModelSize(
        362_833_920, 337_117_184, 352_321_536, 52_559_872, 49_152, 51_328, 391_708_672
    ),
    "paligemma-3b": ModelSize(
        414_803_696, 413_429_760, 1_981_808_640, 526_778_368, 9_216, 257_216, 1_109_491_712
    ),
    "paligemma-2-3b": ModelSize(
        415_098_864, 413_724_672, 2_024_275_968, 592_625_664, 53_248, 257_216, 1_151_827_968
    ),
    "paligemma-2-10b": ModelSize(
        416_574_704, 415_199_232, 8_323_596_288, 921_862_144, 172_032, 257_216, 2_830_991_360
    ),
    "paligemma-2-28b": ModelSize(
        417_755_376, 416_378_880, 26_046_627_840, 1_185_251_328, 188_416, 257_216, 5_910_134_784
    ),
}
_LISTED = re.compile(r"florence-2-(base|large)(-ft)?|paligemma-.*-(mix-...|pt-896)")
_RESOLUTION = re.compile(r"-(mix|pt)-\d+$")
_SIGLIP_WIDTH = 1152
_MAX_SLOTS = 256  # the largest value of that setting
# Per card, beside the runner's own reserve: CUDA contexts. Estimated, not measured.
_CONTEXT_BYTES = 500_000_000
_CARDS_GB = {"T4, 16 GB": 16, "L4, 24 GB": 24, "H100, 80 GB": 80}  # source: NVIDIA's data sheets


@dataclass(frozen=True, slots=True)
class ServedMemory:
    """The memory of a released model, at its default precisions."""

    entry: CatalogEntry
    size: ModelSize

    @property
    def num_image_tokens(self) -> int:
        if self.entry.family == "florence2":
            return 577
        return (self.entry.resolution // _PATCH_PX) ** 2

    def weights_bytes(self, part: Part, device: Device) -> int:
        """Return the size of a part's weights; int8 is of linear layers, the rest is float32."""
        size = self.size
        num_weights = size.encoder
        if self.entry.family == "paligemma":  # position embeddings
            num_weights += _SIGLIP_WIDTH * (self.num_image_tokens - 256)
        num_matrices = size.encoder_matrices
        num_copied = 0
        if part == "decoder":
            num_weights = self.entry.parameters - num_weights
            num_matrices = size.decoder_matrices
            num_copied = size.head
        precision = self.entry.precision[device][part]
        if precision == "int8":
            return num_matrices + num_copied + 4 * (num_weights - num_matrices)
        return num_weights * BYTES_PER_WEIGHT[precision]

    def slot_bytes(self, device: Device) -> int:
        """Return the size of a full slot; on a card it is allocated at the start."""
        precision = self.entry.precision[device]["decoder"]
        window = self.entry.context_window
        limit = default_positions(device, self.num_image_tokens) or window
        value_bytes = 4 if precision == "int8" else BYTES_PER_WEIGHT[precision]
        return self.size.position_values * min(limit, window) * value_bytes

    @property
    def card_slot_bytes(self) -> int:
        """A slot on a card, with the memory in which its tokens are chosen."""
        # imports torch, which takes seconds
        from runners.tokens.choice import choice_bytes

        return self.slot_bytes("cuda") + choice_bytes(self.size.vocabulary)

    def model_bytes(self, device: Device) -> int:
        """Return the size of the weights of both parts."""
        return self.weights_bytes("encoder", device) + self.weights_bytes("decoder", device)

    def num_slots(self, card_gb: float) -> int:
        """Return the number of slots that fit on a card beside the weights and the allowance."""
        free_bytes = int(card_gb * _GB) - self.model_bytes("cuda") - _CONTEXT_BYTES
        return slots_that_fit(
            free_bytes, CUDA_RESERVE_BYTES, self.card_slot_bytes, limit=_MAX_SLOTS
        )

    def row(self) -> list[str]:
        """Return the cells of the table, without the model's id."""
        cells = list[str]()
        for device in self.entry.precision:
            cells.append(f"{self.model_bytes(device) / _GB:.1f}")
            cells.append(f"{self.slot_bytes(device) / _GB:.3f}")
        cells.append(f"{self.size.pool_bytes / _GB:.2f}")
        for card_gb in _CARDS_GB.values():
            cells.append(str(self.num_slots(card_gb) or "none"))
        return cells


def released_models() -> list[ServedMemory]:
    """Return every released model; a base for tuning only at a resolution that no other has."""
    models = []
    for entry in load_catalog(CATALOG_FILE).values():
        if _LISTED.fullmatch(entry.id):
            size = next(size for start, size in SIZES.items() if entry.id.startswith(start))
            models.append(ServedMemory(entry, size))
    return models


def memory_table() -> str:
    """Return a row for each size as Markdown, in GB of 10^9 bytes.

    A cell has one value for each resolution, or one that all share.
    """
    header = ["model", "weights, CPU", "slot, CPU", "weights, CUDA", "slot, CUDA", "adapters, CUDA"]
    header += [f"slots on {card}" for card in _CARDS_GB]
    sizes = dict[str, list[ServedMemory]]()
    for model in released_models():
        sizes.setdefault(_RESOLUTION.sub("", model.entry.id), []).append(model)
    rows = dict[str, str]()  # cells -> name of the first size that has them
    for name, models in sizes.items():
        resolutions = "/".join(str(model.entry.resolution) for model in models)
        cells = list[str]()
        for column in zip(*(model.row() for model in models), strict=True):
            values = column if len(set(column)) > 1 else column[:1]
            cells.append("/".join(values))
        rows.setdefault(" | ".join(cells), f"{name}, {resolutions} px")
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += [f"| {name} | {row} |" for row, name in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(memory_table())
