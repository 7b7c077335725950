"""The export of a LoRA adapter: PEFT's folder, checked against the stored artifacts of its base, becomes a small file.

Nothing is run: the adapter's products are added to those of its base, whose export has compared them with transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from export.artifacts.store import has_current_version, new_version
from export.checkpoints.errors import SourceError
from export.checkpoints.hub import fetch_snapshot
from export.checkpoints.jobs import ROOT, ExportOptions, library_versions
from runners.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, adapter_build_key
from runners.artifacts.manifest import (
    ADAPTER_FILE,
    DECODER_FILE,
    Manifest,
    key_of_hashes,
    read_manifest,
    sha256_of,
    write_manifest,
)
from runners.artifacts.store import artifact_folder
from tasks.catalog import CatalogEntry


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """All inputs of one adapter's export."""

    entry: CatalogEntry
    source: str
    revision: str | None  # the commit of a hub id
    folder: Path  # in PEFT's format
    hashes: Mapping[str, str]  # of PEFT's files
    base_folder: Path
    base: Manifest

    @property
    def build_key(self) -> str:
        return adapter_build_key(self.hashes, self.base.build_key)


def export_adapter(entry: CatalogEntry, options: ExportOptions, if_changed: bool) -> str:
    """Store the artifacts of an adapter; return a line about them.

    Raise `ExportError`, or `ArtifactError` if its base is not exported or does not fit it.
    """
    job = _plan(entry, options)
    if if_changed and has_current_version(entry.id, job.build_key):
        return "up to date"
    from safetensors.torch import save_file  # imports torch, which takes seconds

    from runners.artifacts.peft_adapter import read_adapter

    tensors = read_adapter(job.folder, job.base_folder / DECODER_FILE)
    with new_version(entry.id) as folder:
        save_file(tensors, folder / ADAPTER_FILE)
        write_manifest(folder, _manifest(job, folder))
        num_bytes = (folder / ADAPTER_FILE).stat().st_size
    return f"an adapter of {len(tensors) // 2} layers of {job.base.model_id}, {num_bytes / 1e6:.1f} MB"


def _plan(entry: CatalogEntry, options: ExportOptions) -> AdapterJob:
    assert entry.adapter_of is not None
    for name, value in (("--mask-decoder", options.mask_decoder), ("--images", options.images)):
        if value is not None:
            raise SourceError(f"{name} concerns the base of an adapter; {entry.id} is one of {entry.adapter_of}")
    base_folder = artifact_folder(entry.adapter_of)
    source, root = (entry.source, ROOT) if options.source is None else (options.source, Path.cwd())
    folder, revision = root / source, None
    if not folder.is_dir():
        folder = fetch_snapshot(source, options.revision or entry.revision, [CONFIG_FILE, WEIGHTS_FILE])
        revision = folder.name
    if missing := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]:
        raise SourceError(f"{source} lacks {', '.join(missing)}; an adapter must be a folder in PEFT's format")
    hashes = {name: sha256_of(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return AdapterJob(entry, source, revision, folder, hashes, base_folder, read_manifest(base_folder))


def _manifest(job: AdapterJob, folder: Path) -> Manifest:
    return replace(
        job.base,
        model_id=job.entry.id,
        source=job.source,
        revision=job.revision,
        build_key=job.build_key,
        checkpoint=key_of_hashes(job.hashes),
        versions={name: number for name, number in library_versions().items() if name in ("safetensors", "torch")},
        files={ADAPTER_FILE: sha256_of(folder / ADAPTER_FILE)},
        parity={},
        adapter_of=job.base.model_id,
        base_build_key=job.base.build_key,
    )
