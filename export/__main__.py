"""`python -m export MODEL…`: make the artifacts of catalog models and store them in BentoML's model
store.

`python -m export doctor` checks this host and the exported models (export/doctor.py);
`python -m export golden MODEL` compares a model's answers with published ones (export/golden.py).
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from export import doctor
from export.adapters import export_adapter
from export.artifacts.store import new_version, verified_manifest
from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.errors import ExportError
from export.resources import needs_of
from tasks.catalog import CatalogEntry, CatalogError
from tasks.errors import CheckpointFileError
from wire.artifacts.manifest import ArtifactError


def main(arguments: Sequence[str] | None = None) -> int:
    """Export models in turn, or run another command; return the exit status, 1 if one failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["doctor"]:
        return doctor.main(words[1:])
    if words[:1] == ["golden"]:
        from export import golden  # imports torch, which takes seconds

        return golden.main(words[1:])
    parsed = _parse(words)
    options = ExportOptions(parsed.source, parsed.revision, parsed.mask_decoder, parsed.images)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        for entry in [find_entry(name, parsed.revision) for name in parsed.models]:
            if entry.engine is not None:
                print(f"{entry.id}: nothing to export, an engine serves it")
                continue
            export = _export if entry.adapter_of is None else export_adapter
            print(f"{entry.id}: {export(entry, options, parsed.if_changed)}")
    except (ExportError, CatalogError, ArtifactError, CheckpointFileError, OSError) as error:
        print(f"python -m export: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m export", description=__doc__)
    add = parser.add_argument
    models = "an id of models/catalog.yaml, or hf:owner/name"
    add("models", nargs="+", metavar="MODEL", help=models)
    add("--source", help="a hub id or a folder; default: the catalog's")
    add("--revision", help="branch, tag or commit of the hub id")
    add("--mask-decoder", type=Path, metavar="FILE", help="PaliGemma's vae-oid.npz")
    images = "images to compare answers on, beside models/photographs"
    add("--images", type=Path, metavar="FOLDER", help=images)
    if_changed = "skip a model whose newest artifacts are up to date"
    add("--if-changed", action="store_true", help=if_changed)
    parsed = parser.parse_args(arguments)
    if len(parsed.models) > 1 and (parsed.source or parsed.revision or parsed.mask_decoder):
        parser.error("--source, --revision and --mask-decoder require exactly one MODEL")
    return parsed


def _export(entry: CatalogEntry, options: ExportOptions, if_changed: bool) -> str:
    """Store the artifacts of a model; return a line about them. Raise `ExportError`."""
    current = verified_manifest(entry.id) if if_changed else None
    is_repository = options.source is None and not (ROOT / entry.source).is_dir()
    if current and is_repository and current.revision is None and current.source != entry.source:
        return f"kept as exported from {current.source}; without --if-changed, of {entry.source}"
    needs = needs_of(entry)
    if not if_changed:
        needs.check_host()  # before a download
    job = plan_job(entry, options)
    if current and current.build_key == job.build_key:
        return "up to date"
    needs.check_host()
    # Large pages for torch's tensors on Linux: zeroing weights that are read at each use 4 KB at a
    # time takes longer than computing with them. torch reads it at its first allocation
    # (c10/core/impl/alloc_cpu.cpp).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from export.pipeline import make_artifacts  # imports torch, which takes seconds

    with new_version(entry.id) as folder:
        manifest = make_artifacts(job, folder, needs.is_large)
    features = manifest.parity["image_features"]
    tokens = manifest.parity["tokens"]
    return (
        f"image features of {features['num_images']} images: min cosine"
        f" {features['min_cosine']:.6f}, max abs error {features['max_abs_error']:.1e};"
        f" {tokens['num_tokens']} tokens of {tokens['num_prompts']} prompts:"
        f" {tokens['num_near_ties']} near ties"
    )


if __name__ == "__main__":
    sys.exit(main())
