"""`python -m export MODEL…`: make the artifacts of catalog models and put them into BentoML's model store."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from export.jobs import ExportJob, ExportOptions, plan_job
from export.store import has_current_version
from runners.artifacts.manifest import Manifest
from tasks.catalog import CatalogEntry, CatalogError, load_catalog

_ROOT = Path(__file__).parents[1]
_CATALOG = _ROOT / "models" / "catalog.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Export every model that was asked for; return the exit status, 1 at the first that fails."""
    parsed = _parse(arguments)
    options = ExportOptions(parsed.source, parsed.revision, parsed.mask_decoder)
    try:
        for entry in _entries(parsed.models):
            _export(plan_job(entry, options, _ROOT), parsed.if_changed)
    except (ExportError, CatalogError) as error:
        print(f"python -m export: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m export", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="an id of models/catalog.yaml")
    parser.add_argument("--source", help="a hub id or a folder, instead of the catalog's")
    parser.add_argument("--revision", help="branch, tag or commit of the hub id")
    parser.add_argument("--mask-decoder", type=Path, metavar="FILE", help="PaliGemma's vae-oid.npz")
    parser.add_argument("--if-changed", action="store_true", help="skip a model whose newest artifacts are up to date")
    parsed = parser.parse_args(arguments)
    if len(parsed.models) > 1 and (parsed.source or parsed.revision or parsed.mask_decoder):
        parser.error("--source, --revision and --mask-decoder go with one MODEL")
    return parsed


def _entries(model_ids: Sequence[str]) -> list[CatalogEntry]:
    catalog = load_catalog(_CATALOG)
    if unknown := [model_id for model_id in model_ids if model_id not in catalog]:
        raise CatalogError(f"unknown model {', '.join(unknown)}; the catalog has {', '.join(catalog)}")
    return [catalog[model_id] for model_id in model_ids]


def _export(job: ExportJob, if_changed: bool) -> None:
    if if_changed and has_current_version(job.entry.id, job.build_key):
        print(f"{job.entry.id}: up to date")
        return
    start_s = time.monotonic()
    from transformers.utils import logging  # with torch, seconds to import

    from export.pipeline import run_export

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    manifest = run_export(job)
    print(f"{job.entry.id}: {_summary(manifest)}, {time.monotonic() - start_s:.1f} s")


def _summary(manifest: Manifest) -> str:
    features, tokens = manifest.parity["image_features"], manifest.parity["tokens"]
    return (
        f"image features of {features['num_images']} images: cosine {features['min_cosine']:.6f}, "
        f"max-abs {features['max_abs_error']:.1e}; {tokens['num_tokens']} tokens of {tokens['num_prompts']} prompts: "
        f"{tokens['num_near_ties']} near ties; against float32: {_differences(manifest)}"
    )


def _differences(manifest: Manifest) -> str:
    """Return `int8 encoder 0.99950, …`, and whether the task accuracy of these weights was measured."""
    shown = [
        f"{precision} {part} {measured['mean_cosine']:.5f}"
        for part in ("encoder", "decoder")
        for precision, measured in manifest.parity[part].items()
    ]
    record = manifest.parity["accuracy"]
    accuracy = f"measured on {record['num_scenes']} scenes" if record else "not measured"
    return f"mean cosine {', '.join(shown)}; task accuracy {accuracy}"


if __name__ == "__main__":
    sys.exit(main())
