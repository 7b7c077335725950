"""`python -m export MODEL…`: make the artifacts of catalog models and store them in BentoML's model
store.

`python -m export doctor` checks this host and the exported models (export/doctor.py);
`python -m export golden MODEL` compares a model's answers with published ones (export/golden.py).
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from export import doctor
from export.adapters import export_adapter
from export.artifacts.store import folder_of_current, has_current_version, new_version
from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import ExportOptions, find_entry, plan_job
from export.checks.golden_answers import golden_offer
from export.errors import ExportError
from export.progress import NUM_STEPS, Progress, silence_transformers
from export.resources import check_host, needs_of
from tasks.catalog import CatalogEntry, CatalogError
from wire.artifacts.manifest import ArtifactError, Manifest
from wire.host import num_cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the requested models in turn, or run another command.

    Return the exit status, 1 at the first failure.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["doctor"]:
        return doctor.main(words[1:])
    if words[:1] == ["golden"]:
        from export import golden  # imports torch, which takes seconds

        return golden.main(words[1:])
    parsed = _parse(words)
    options = ExportOptions(parsed.source, parsed.revision, parsed.mask_decoder, parsed.images)
    try:
        for entry in [find_entry(name, parsed.revision) for name in parsed.models]:
            if entry.adapter_of is None:
                _export(entry, options, parsed.if_changed)
            else:
                print(f"{entry.id}: {export_adapter(entry, options, parsed.if_changed)}")
    except (ExportError, CatalogError, ArtifactError) as error:
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


def _export(entry: CatalogEntry, options: ExportOptions, if_changed: bool) -> None:
    start_s = time.monotonic()
    is_repository = options.source is None and not (ROOT / entry.source).is_dir()
    if if_changed and is_repository and (exported_from := folder_of_current(entry)) is not None:
        print(
            f"{entry.id}: kept as exported from {exported_from}; python -m export {entry.id}"
            f" exports {entry.source} instead"
        )
        return
    needs = needs_of(entry, num_cores())
    if not if_changed:
        check_host(needs)  # before a download
    job = plan_job(entry, options)
    if if_changed and has_current_version(entry.id, job.build_key):
        print(f"{entry.id}: up to date")
        return
    check_host(needs)
    print(f"{entry.id}: {needs}", file=sys.stderr, flush=True)
    # Large pages for torch's tensors on Linux: zeroing weights that are read at each use 4 KB at a
    # time takes longer than computing with them. torch reads it at its first allocation
    # (c10/core/impl/alloc_cpu.cpp).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from export.pipeline import make_artifacts  # imports torch, which takes seconds

    silence_transformers()
    with new_version(entry.id) as folder, Progress(entry.id, NUM_STEPS) as progress:
        manifest = make_artifacts(job, folder, progress, needs.is_large)
    print(f"{entry.id}: {_summary(manifest)}, {time.monotonic() - start_s:.1f} s")
    if offer := golden_offer(entry.id):
        print(f"{entry.id}: {offer}")


def _summary(manifest: Manifest) -> str:
    features = manifest.parity["image_features"]
    tokens = manifest.parity["tokens"]
    cosines = []
    for part in ("encoder", "decoder"):
        for precision, measured in manifest.parity[part].items():
            cosines.append(f"{precision} {part} {measured['mean_cosine']:.5f}")
    answers = manifest.parity["answers"]
    shares = []
    for run in answers["runs"]:
        pair = f"{run['encoder']} encoder with {run['decoder']} decoder"
        shares.append(f"{pair} {run['agreement']['equal_tokens']:.3f}")
    return (
        f"image features of {features['num_images']} images: min cosine"
        f" {features['min_cosine']:.6f}, max abs error {features['max_abs_error']:.1e};"
        f" {tokens['num_tokens']} tokens of {tokens['num_prompts']} prompts:"
        f" {tokens['num_near_ties']} near ties; mean cosine with float32: {', '.join(cosines)};"
        f" equal tokens of answers about {answers['decided_by']}:"
        f" {', '.join(shares) or 'not compared'}"
    )


if __name__ == "__main__":
    sys.exit(main())
