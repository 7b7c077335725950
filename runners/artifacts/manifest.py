"""The folder that the export makes of a checkpoint and that the runners load.

    manifest.json           what was made from what, with the sha256 of every other file
    vision_encoder.onnx     pixels uint8 (B, H, W, 3) -> image_features float32 (B, N, C); projector included
    vision_encoder.int8.onnx, vision_encoder.float16.onnx   the same at another precision, where it holds
    decoder.safetensors     every tensor of the checkpoint but the vision tower and the projector, as it is stored there
    config.json, generation_config.json, tokenizer.json, …   as the checkpoint has them
    mask_decoder.npz        PaliGemma only: the codebook and decoder of its segmentation tokens

It does not know where such folders are kept.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Family = Literal["florence2", "paligemma"]
Device = Literal["cpu", "cuda"]
Part = Literal["encoder", "decoder"]
Precision = Literal["float32", "int8", "bfloat16", "float16"]  # int8: of the weights; what they multiply is rounded too

MANIFEST_FILE = "manifest.json"
DECODER_FILE = "decoder.safetensors"
CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
PROCESSOR_CONFIG_FILE = "processor_config.json"
MASK_DECODER_FILE = "mask_decoder.npz"

_HASH_BLOCK_BYTES = 1 << 20


def vision_encoder_file(precision: Precision) -> str:
    """Return the name of the vision encoder's graph at a precision."""
    return "vision_encoder.onnx" if precision == "float32" else f"vision_encoder.{precision}.onnx"


class ArtifactError(Exception):
    """An artifact folder is missing, incomplete, or not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact folder holds and what it was made from."""

    model_id: str
    family: Family
    source: str
    revision: str | None  # the commit of a hub source; None for a local folder
    build_key: str  # sha256 over everything that decides the content of the folder
    precision: Mapping[Device, Mapping[Part, Precision]]  # what each part runs in unless the operator says otherwise
    image_size_wh: tuple[int, int]  # the one input size of the vision encoder, pixels
    resample: int  # PIL's number of the filter that images are resized with
    num_image_tokens: int
    hidden_size: int
    versions: Mapping[str, str]
    files: Mapping[str, str]  # file name -> sha256, hexadecimal
    parity: Mapping[str, Any]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into its folder."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact folder; raise `ArtifactError` if there is none or it does not fit."""
    path = folder / MANIFEST_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        width, height = values.pop("image_size_wh")
        manifest = Manifest(image_size_wh=(width, height), **values)
        if not isinstance(manifest.precision, dict):
            raise ValueError(f"precision is {manifest.precision!r}, not that of each part on each device")
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a manifest that this version reads: {error!r}") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raise `ArtifactError` unless `folder` holds exactly the manifest's files with their hashes."""
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    # BentoML's store writes a description of its own into each folder.
    unknown = present - {MANIFEST_FILE, "model.yaml", *manifest.files}
    if unknown:
        raise ArtifactError(f"{folder} holds files that its manifest does not list: {sorted(unknown)}")
    for name, expected in manifest.files.items():
        if name not in present:
            raise ArtifactError(f"{folder} lacks {name}, which its manifest lists")
        if (actual := sha256_of(folder / name)) != expected:
            raise ArtifactError(f"{folder / name} has sha256 {actual}, its manifest says {expected}")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's `config.json`."""
    config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config
