"""Plans an export: its checkpoint, its other files, and the build key that identifies the result.

Two exports with the same build key produce the same artifacts, so the second can be skipped.
Imports neither torch nor transformers: an export with nothing to do starts fast.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from export.checkpoints.bases import ROOT, hub_model_entry, served_catalog
from export.checkpoints.sources import WEIGHTS_FILE, Source, resolve_file, resolve_source
from export.errors import SourceError
from imaging.files import IMAGE_SUFFIXES
from tasks.catalog import HUB_PREFIX, CatalogEntry, CatalogError, load_catalog
from tasks.errors import meant
from tasks.paligemma.masks import MaskDecoder
from tasks.scores import read_calibrations
from wire.artifacts.manifest import (
    CALIBRATION_FILE,
    RUNNABLE,
    Device,
    Part,
    Precision,
    key_of_hashes,
    sha256_of,
)

PHOTOGRAPHS = ROOT / "models" / "photographs"
EXPORT_FORMAT = 10  # increment when an export writes other files than before

_LIBRARIES = ("numpy", "onnx", "onnxruntime", "safetensors", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Overrides of a catalog entry; None keeps the catalog's value."""

    source: str | None = None
    revision: str | None = None
    mask_decoder: Path | None = None
    images: Path | None = None  # the user's folder of images, beside the photographs that ship


@dataclass(frozen=True, slots=True)
class ExportJob:
    """All inputs of one export."""

    entry: CatalogEntry
    source: Source
    checkpoint: str  # sha256 over its files, hexadecimal
    mask_decoder: Path | None
    calibration: Path | None  # fitted on this checkpoint
    versions: dict[str, str]
    build_key: str
    # shipped photographs; without any, precisions are not compared by answers
    photographs: tuple[Path, ...]
    own_images: tuple[Path, ...]

    @property
    def knows_scenes_only(self) -> bool:
        """True for the embedded models, which this repository has trained on scenes."""
        return (ROOT / self.entry.source).is_dir() and not Path(self.entry.source).is_absolute()


def find_entry(name: str, revision: str | None = None) -> CatalogEntry:
    """Return an entry of the catalog or of `hf:owner/name`; raise `CatalogError`, `SourceError`."""
    if name.startswith(HUB_PREFIX):
        return hub_model_entry(name.removeprefix(HUB_PREFIX), revision)
    catalog = load_catalog(served_catalog(), [name])
    if name not in catalog:
        raise CatalogError(
            f"unknown model {name}{meant(name, catalog)}; the catalog has {', '.join(catalog)};"
            f" any other repository of the hub is named {HUB_PREFIX}owner/name"
        )
    return catalog[name]


def plan_job(entry: CatalogEntry, options: ExportOptions) -> ExportJob:
    """Find the files of an export, fetching those on the hub.

    The catalog's folders are relative to the repository, those of `options` to the working
    directory. Raise `SourceError`, or `CheckpointFileError` for a calibration or a mask decoder.
    """
    for device, parts in entry.precision.items():
        for part, precision in parts.items():
            if precision not in (allowed := RUNNABLE[device][part]):
                raise SourceError(
                    f"{entry.id}: the {part} cannot run in {precision} on {device}; allowed:"
                    f" {', '.join(allowed)}"
                )
    if options.source is None:
        revision = options.revision or entry.revision
        source = resolve_source(entry.source, revision, entry.family, ROOT)
    else:
        source = resolve_source(options.source, options.revision, entry.family, Path.cwd())
    hashes = source.hashes()
    if options.source is None and options.revision is None:
        check_pinned(entry, hashes)
    checkpoint = key_of_hashes(hashes)
    mask_decoder = find_mask_decoder(entry, options, source)
    calibration = find_calibration(source, checkpoint)
    versions = library_versions()
    photographs = _find_images(PHOTOGRAPHS)
    own_images = _find_images(options.images) if options.images else ()
    files = [*hashes.items()]
    for path in (mask_decoder, calibration, *photographs, *own_images):
        if path is not None:
            files.append((path.name, sha256_of(path)))
    return ExportJob(
        entry=entry,
        source=source,
        checkpoint=checkpoint,
        mask_decoder=mask_decoder,
        calibration=calibration,
        versions=versions,
        build_key=build_key(files, entry.precision, versions),
        photographs=photographs,
        own_images=own_images,
    )


def library_versions() -> dict[str, str]:
    return dict(zip(_LIBRARIES, map(version, _LIBRARIES), strict=True))


def build_key(
    files: Sequence[tuple[str, str]],
    precision: Mapping[Device, Mapping[Part, Precision]],
    versions: dict[str, str],
) -> str:
    """Return the sha256 over all that decides the artifacts; `files`: names with their sha256."""
    inputs = {
        "export_format": EXPORT_FORMAT,
        "files": files,
        "precision": precision,
        "versions": versions,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def check_pinned(entry: CatalogEntry, hashes: Mapping[str, str]) -> None:
    """Raise `SourceError` if the weights are others than those that the catalog pins."""
    expected = entry.weights_sha256
    if expected is not None and hashes.get(WEIGHTS_FILE) != expected:
        raise SourceError(
            f"{WEIGHTS_FILE} of {entry.source} at {entry.revision} has sha256"
            f" {hashes.get(WEIGHTS_FILE)}; the catalog expects {expected}. To export it"
            f" nevertheless: --source {entry.source}"
        )


def _find_images(folder: Path) -> tuple[Path, ...]:
    images = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise SourceError(
            f"{folder} is not a folder with images; allowed are {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return tuple(images)


def find_calibration(source: Source, checkpoint: str) -> Path | None:
    """Return the calibration in a checkpoint's folder, or None if missing or of another one."""
    path = source.folder / CALIBRATION_FILE
    if not path.is_file():
        return None
    checkpoints = {calibration.checkpoint for calibration in read_calibrations(path)}
    return path if checkpoints <= {checkpoint} else None


def find_mask_decoder(entry: CatalogEntry, options: ExportOptions, source: Source) -> Path | None:
    if entry.mask_decoder is None:
        if options.mask_decoder is not None:
            raise SourceError(f"{entry.id} does not use a mask decoder")
        return None
    path = options.mask_decoder or resolve_file(entry.mask_decoder, source)
    MaskDecoder.load(path)
    return path
