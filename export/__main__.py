"""`python -m export MODEL…`: make the artifacts of catalog models and store them in BentoML's model store."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from export.artifacts.store import has_current_version, new_version
from export.checkpoints.errors import ExportError
from export.checkpoints.jobs import ExportJob, ExportOptions, find_entry, plan_job
from runners.artifacts.manifest import Manifest
from tasks.catalog import CatalogError


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the requested models in turn; return the exit status, 1 at the first failure."""
    parsed = _parse(arguments)
    options = ExportOptions(parsed.source, parsed.revision, parsed.mask_decoder, parsed.images)
    try:
        for entry in [find_entry(model_id) for model_id in parsed.models]:
            _export(plan_job(entry, options), parsed.if_changed)
    except (ExportError, CatalogError) as error:
        print(f"python -m export: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m export", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="an id of models/catalog.yaml")
    parser.add_argument("--source", help="a hub id or a folder; default: the catalog's")
    parser.add_argument("--revision", help="branch, tag or commit of the hub id")
    parser.add_argument("--mask-decoder", type=Path, metavar="FILE", help="PaliGemma's vae-oid.npz")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to compare answers on, beside models/photographs"
    )
    parser.add_argument("--if-changed", action="store_true", help="skip a model whose newest artifacts are up to date")
    parsed = parser.parse_args(arguments)
    if len(parsed.models) > 1 and (parsed.source or parsed.revision or parsed.mask_decoder):
        parser.error("--source, --revision and --mask-decoder require exactly one MODEL")
    return parsed


def _export(job: ExportJob, if_changed: bool) -> None:
    if if_changed and has_current_version(job.entry.id, job.build_key):
        print(f"{job.entry.id}: up to date")
        return
    start_s = time.monotonic()
    from transformers.utils import logging  # imports torch, which takes seconds

    from export.pipeline import make_artifacts

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with new_version(job.entry.id) as folder:
        manifest = make_artifacts(job, folder)
    print(f"{job.entry.id}: {_summary(manifest)}, {time.monotonic() - start_s:.1f} s")


def _summary(manifest: Manifest) -> str:
    features, tokens = manifest.parity["image_features"], manifest.parity["tokens"]
    cosines = [
        f"{precision} {part} {measured['mean_cosine']:.5f}"
        for part in ("encoder", "decoder")
        for precision, measured in manifest.parity[part].items()
    ]
    decided_by, runs = manifest.parity["answers"]["decided_by"], manifest.parity["answers"]["runs"]
    equal = [
        f"{run['encoder']} encoder with {run['decoder']} decoder {run['agreement']['equal_tokens']:.3f}"
        for run in runs
        if run["pictures"] == decided_by
    ]
    record = manifest.parity["accuracy"]
    accuracy = f"measured on {record['num_scenes']} scenes" if record else "not measured"
    return (
        f"image features of {features['num_images']} images: min cosine {features['min_cosine']:.6f}, "
        f"max abs error {features['max_abs_error']:.1e}; {tokens['num_tokens']} tokens of {tokens['num_prompts']} "
        f"prompts: {tokens['num_near_ties']} near ties; mean cosine with float32: {', '.join(cosines)}; "
        f"equal tokens of answers about {decided_by}: {', '.join(equal) or 'not compared'}; "
        f"task accuracy {accuracy}"
    )


if __name__ == "__main__":
    sys.exit(main())
