"""The export of a LoRA adapter: PEFT's folder, checked against the stored artifacts of its base,
becomes a small file.

The language part is not run: its products are added to those of the base, whose export has compared
them with transformers. A vision part is merged into the base's checkpoint, of which vision encoders
are made as of any other.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from export.artifacts.store import new_version, verified_manifest
from export.checkpoints.bases import ROOT, is_hub_entry
from export.checkpoints.jobs import EXPORT_FORMAT, ExportOptions, find_entry, library_versions
from export.checkpoints.sources import Source, fetch_snapshot, in_transformers_form, resolve_source
from export.errors import SourceError
from export.resources import needs_of
from tasks.catalog import CatalogEntry, entry_row
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterLimits,
    adapter_build_key,
)
from wire.artifacts.manifest import (
    ADAPTER_FILE,
    DECODER_FILE,
    ENTRY_FILE,
    Manifest,
    Precision,
    key_of_hashes,
    read_manifest,
    sha256_of,
    vision_encoder_file,
    write_manifest,
)
from wire.artifacts.model_store import artifact_folder

if TYPE_CHECKING:
    from runners.adapters.peft import AdapterParts


@dataclass(frozen=True, slots=True)
class AdapterJob:
    """All inputs of one adapter's export."""

    entry: CatalogEntry
    source: str
    revision: str | None  # the commit of a hub id
    folder: Path  # PEFT's format
    hashes: Mapping[str, str]  # PEFT's files
    base_folder: Path
    base: Manifest

    @property
    def build_key(self) -> str:
        """The build key of an adapter that uses the encoder of its base."""
        return adapter_build_key(self.hashes, self.base.build_key)

    @property
    def build_key_with_encoder(self) -> str:
        """The build key of an adapter with its own encoder: it depends on the libraries too."""
        versions = {"export_format": str(EXPORT_FORMAT), **library_versions()}
        return key_of_hashes({"adapter": self.build_key, **versions})


def export_adapter(entry: CatalogEntry, options: ExportOptions, if_changed: bool) -> str:
    """Store an adapter; return a line about it. Raise `ExportError` or `ArtifactError`."""
    job = plan_adapter(entry, options)
    current = verified_manifest(entry.id) if if_changed else None
    if current and current.build_key in (job.build_key, job.build_key_with_encoder):
        return "up to date"
    from safetensors.torch import save_file  # imports torch, which takes seconds

    from export.pipeline import file_hashes
    from runners.adapters.peft import read_parts

    parts = read_parts(job.folder, job.base_folder / DECODER_FILE, AdapterLimits())
    summary = f"an adapter of {len(parts.language) // 2} layers of {job.base.model_id}"
    with new_version(entry.id) as folder:
        save_file(dict(parts.language), folder / ADAPTER_FILE)
        manifest = _manifest(job)
        if parts.vision_weights:
            with in_transformers_form(_base_source(job)) as base:
                manifest = _make_encoders(job, base.folder, parts, folder, manifest)
            summary += f" and {len(parts.vision_weights)} weights of its vision tower and projector"
        if is_hub_entry(entry):
            row = {**entry_row(entry), "adapter_of": entry.adapter_of}
            (folder / ENTRY_FILE).write_text(json.dumps(row), encoding="utf-8")
        write_manifest(folder, replace(manifest, files=file_hashes(folder)))
    return summary


def plan_adapter(entry: CatalogEntry, options: ExportOptions) -> AdapterJob:
    assert entry.adapter_of is not None
    if options.mask_decoder is not None or options.images is not None:
        raise SourceError(f"{entry.id} is an adapter: --mask-decoder and --images are of its base")
    base_folder = artifact_folder(entry.adapter_of)
    source, root = (entry.source, ROOT) if options.source is None else (options.source, Path.cwd())
    folder = root / source
    revision = None
    names = (CONFIG_FILE, WEIGHTS_FILE)
    if not folder.is_dir():
        folder = fetch_snapshot(source, options.revision or entry.revision, names)
        revision = folder.name
    if not all((folder / name).is_file() for name in names):
        raise SourceError(f"{source} must have {' and '.join(names)}, as PEFT saves them")
    hashes = {name: sha256_of(folder / name) for name in names}
    return AdapterJob(
        entry, source, revision, folder, hashes, base_folder, read_manifest(base_folder)
    )


def _manifest(job: AdapterJob) -> Manifest:
    versions = library_versions()
    return replace(
        job.base,
        model_id=job.entry.id,
        source=job.source,
        revision=job.revision,
        build_key=job.build_key,
        checkpoint=key_of_hashes(job.hashes),
        versions={name: versions[name] for name in ("safetensors", "torch")},
        files={},
        parity={},
        adapter_of=job.base.model_id,
        base_build_key=job.base.build_key,
    )


def _make_encoders(
    job: AdapterJob, checkpoint: Path, changes: "AdapterParts", folder: Path, manifest: Manifest
) -> Manifest:
    """Write an adapter's vision encoders; return `manifest` measured; raise `ParityError`."""
    entry = job.entry
    from export.artifacts.encoders import load_vision_model, make_encoders, write_merged
    from export.artifacts.vision_module import read_image_input
    from export.checkpoints.tensors import silence_transformers
    from export.checks.parity import make_probes, measure_encoders
    from export.checks.reference import Reference, load_processor
    from export.pipeline import measured_defaults

    silence_transformers()
    processor = load_processor(checkpoint)
    image_input = read_image_input(processor.image_processor)
    precisions = list[Precision]()
    for precision in get_args(Precision):
        if vision_encoder_file(precision) in job.base.files:
            precisions.append(precision)
    images = [probe.image for probe in make_probes(entry, image_input)]
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged.safetensors"
        write_merged(checkpoint, changes, merged)
        reference = Reference(load_vision_model(checkpoint, merged), processor)
        expected = reference.image_features(images)
        is_large = needs_of(entry).is_large
        make_encoders(checkpoint, image_input, precisions, folder, merged, in_child=is_large)
    measured = measure_encoders(folder, entry, precisions, images, expected)
    parity = {"encoder": measured.by_precision, "decoder": job.base.parity["decoder"]}
    return replace(
        manifest,
        build_key=job.build_key_with_encoder,
        versions=library_versions(),
        precision=measured_defaults(job.base.precision, parity),
        parity={"image_features": measured.parity, "encoder": measured.by_precision},
    )


def _base_source(job: AdapterJob) -> Source:
    """Return the checkpoint that the base was exported from; raise `SourceError`."""
    base = job.base
    root = ROOT if base.source == find_entry(base.model_id).source else Path.cwd()
    source = resolve_source(base.source, base.revision, base.family, root)
    if key_of_hashes(source.hashes()) != base.checkpoint:
        raise SourceError(
            f"{base.source} is another checkpoint than {base.model_id} was exported from: export"
            f" {base.model_id} again, then {job.entry.id}"
        )
    return source
