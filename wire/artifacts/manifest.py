"""The artifact folder of a model: written by the export, loaded by its runner.

    manifest.json           source, build key and precisions, and the sha256 of every other file
    vision_encoder.onnx     pixels uint8 (B, H, W, 3) -> image_features float32 (B, N, C); projector
                            included; vision_encoder.int8.onnx is the same at another precision
    decoder.safetensors     the tensors of the checkpoint without vision tower and projector, in
                            their stored dtype
    config.json, generation_config.json, tokenizer.json, …   copied from the checkpoint
    mask_decoder.npz        PaliGemma only: the codebook and decoder of its segmentation tokens
    calibration.json        the calibration of scores by task, if the checkpoint's folder has one
    entry.json              the catalog entry of a model that no catalog has (hf:owner/name)

Of a LoRA adapter, which runs in the runner of its base:

    manifest.json           the same, with the base's id and build key, input size and precisions
    adapter.safetensors     two float32 matrices for each layer that it changes
    vision_encoder*.onnx    only if it changes the vision tower or the projector: its own
"""

import dataclasses
import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter

Family = Literal["florence2", "paligemma", "openai"]  # the last has no artifacts
Device = Literal["cpu", "cuda"]
Part = Literal["encoder", "decoder"]
# int8: weights and the inputs of their products
Precision = Literal["float32", "int8", "bfloat16", "float16"]

WantedPrecision = Literal["auto", "float32", "int8", "bfloat16", "float16"]

# the precisions in which a part can run
RUNNABLE: Mapping[Device, Mapping[Part, tuple[Precision, ...]]] = {
    "cpu": {"encoder": ("float32", "int8"), "decoder": ("float32", "int8", "bfloat16")},
    "cuda": {"encoder": ("float32", "float16"), "decoder": ("float32", "bfloat16", "float16")},
}

MANIFEST_FILE = "manifest.json"
DECODER_FILE = "decoder.safetensors"
CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
PROCESSOR_CONFIG_FILE = "processor_config.json"
MASK_DECODER_FILE = "mask_decoder.npz"
ADAPTER_FILE = "adapter.safetensors"
VISION_ENCODER_FILE = "vision_encoder.onnx"  # float32
CALIBRATION_FILE = "calibration.json"
ENTRY_FILE = "entry.json"
FILES_OF_GATEWAY = frozenset(
    {MASK_DECODER_FILE, PROCESSOR_CONFIG_FILE, CALIBRATION_FILE, ENTRY_FILE}
)


def vision_encoder_file(precision: Precision) -> str:
    return VISION_ENCODER_FILE if precision == "float32" else f"vision_encoder.{precision}.onnx"


class ArtifactError(Exception):
    """An artifact folder is missing, incomplete, or does not match its manifest."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of an artifact folder, and its source."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model_id: str
    family: Family
    source: str
    revision: str | None  # the commit of a hub source; None for a local folder
    build_key: str  # sha256 of everything that determines the content of the folder
    checkpoint: str  # sha256 over the files of the checkpoint
    precision: Mapping[Device, Mapping[Part, Precision]]  # the default of each part
    image_size_wh: tuple[int, int]  # input size of the vision encoder, pixels
    resample: int  # PIL's number of the resize filter
    num_image_tokens: int
    hidden_size: int
    versions: Mapping[str, str]
    files: Mapping[str, str]  # file name -> sha256, hexadecimal
    parity: Mapping[str, Any]
    adapter_of: str | None = None  # an adapter: the id of its base
    # an adapter: the build of its base that it was checked against
    base_build_key: str | None = None

    @property
    def has_encoder(self) -> bool:
        """True unless it is an adapter that uses the vision encoder of its base."""
        return VISION_ENCODER_FILE in self.files


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal; reads it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of_hashes(hashes: Mapping[str, str]) -> str:
    """Return the sha256 over the names and hashes of a checkpoint's files, hexadecimal."""
    return hashlib.sha256(json.dumps(list(hashes.items())).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


_MANIFEST = TypeAdapter(Manifest)


def read_manifest(folder: Path) -> Manifest:
    """Raise `ArtifactError` if the manifest is missing or malformed."""
    path = folder / MANIFEST_FILE
    try:
        return _MANIFEST.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a valid manifest of this version: {error}") from error


def verify_files(folder: Path, manifest: Manifest, names: Container[str] | None = None) -> None:
    """Raise `ArtifactError` unless `folder` has exactly the manifest's files and their hashes.

    Only the files `names` are read and hashed, by default all.
    """
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    # BentoML's store adds model.yaml to each folder.
    if unknown := present - {MANIFEST_FILE, "model.yaml", *manifest.files}:
        raise ArtifactError(f"{folder} has files that its manifest lacks: {sorted(unknown)}")
    for name, expected in manifest.files.items():
        if name not in present:
            raise ArtifactError(f"{folder} lacks {name}, which its manifest lists")
        if names is not None and name not in names:
            continue
        if (actual := sha256_of(folder / name)) != expected:
            raise ArtifactError(f"{folder / name} has sha256 {actual}, not its manifest's")


def files_of_runner(manifest: Manifest, encoder_precision: Precision) -> frozenset[str]:
    """Return the files that a runner reads: all but the vision encoders of other precisions."""
    encoders = {vision_encoder_file(precision) for precision in get_args(Precision)}
    return frozenset(manifest.files) - encoders | {vision_encoder_file(encoder_precision)}


def read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config


def choose_precision(
    manifest: Manifest, part: Part, device: Device, setting: WantedPrecision
) -> Precision:
    """Return the precision of `part` on `device`; raise `ArtifactError` if it cannot run in it."""
    precision = manifest.precision[device][part] if setting == "auto" else setting
    possible = list(RUNNABLE[device][part])
    if part == "encoder":  # each precision is a file of its own
        possible = [name for name in possible if vision_encoder_file(name) in manifest.files]
    if precision not in possible:
        problem = f"the {part} of {manifest.model_id} cannot run in {precision} on {device}"
        raise ArtifactError(f"{problem}; its artifacts allow {', '.join(possible)}")
    return precision


def measured_agreement(
    manifest: Manifest, encoder: Precision, decoder: Precision
) -> dict[str, Any] | None:
    """Return the export's measurements of answers at two precisions, or None without any.

    Answers at float32 are not measured: they are the reference.
    """
    answers = manifest.parity.get("answers", {"runs": ()})
    for run in answers["runs"]:
        is_asked = (run["encoder"], run["decoder"]) == (encoder, decoder)
        if is_asked and run["pictures"] == answers["decided_by"]:
            pictures = {"pictures": run["pictures"], "num_pictures": run["num_pictures"]}
            return pictures | dict(run["agreement"])
    return None
