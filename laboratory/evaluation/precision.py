"""Measures a model's accuracy at each precision and records it in models/MODEL/precision.json.

    python -m laboratory.evaluation.precision MODEL [--scenes N] [--clients N] [--device DEVICE]

The service is started with every pair of precisions that the device supports, and evaluated on
unseen scenes. The export refuses a default precision that loses too much. The record's runs on
another device are kept if they are of the same checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product

from export.__main__ import main as export
from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from export.checkpoints.precision_record import (
    PrecisionRecord,
    PrecisionRun,
    checkpoint_key,
    read_record,
    record_file,
    write_record,
)
from export.checkpoints.sources import resolve_source
from export.errors import ExportError
from laboratory.evaluation.client import evaluate, service_process
from laboratory.evaluation.scenes import CONDITIONS
from laboratory.scoring import accuracy_table, task_accuracy
from tasks.catalog import CatalogEntry, CatalogError
from wire.artifacts.manifest import Device, Manifest, Precision, possible_precisions, read_manifest
from wire.artifacts.model_store import artifact_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and record one model; return the exit status."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        "python -m laboratory.evaluation.precision", description=summary
    )
    add = parser.add_argument
    default = "default: %(default)s"
    add("model", metavar="MODEL", help="an id of models/catalog.yaml")
    add("--scenes", type=int, default=500, metavar="N", help=default)
    add("--clients", type=int, default=8, metavar="N", help=f"concurrent requests; {default}")
    add("--device", choices=("cpu", "cuda"), default="cpu", help=default)
    parsed = parser.parse_args(arguments)
    try:
        entry = find_entry(parsed.model)
        if export(["--if-changed", entry.id]):
            return 1
        _record(entry, parsed)
    except (ExportError, CatalogError) as error:
        print(f"{parsed.model}: {error}", file=sys.stderr)
        return 1
    return export(["--if-changed", entry.id])


def _record(entry: CatalogEntry, parsed: argparse.Namespace) -> None:
    """Evaluate every pair of precisions, print the table and write the record."""
    scorecards = {}
    runs = []
    for encoder, decoder in pairs(read_manifest(artifact_folder(entry.id)), parsed.device):
        print(f"{entry.id} on {parsed.device}: encoder {encoder}, decoder {decoder}", flush=True)
        settings = {
            "DIPTYCH_MODELS": entry.id,
            "DIPTYCH_DEVICE": parsed.device,
            "DIPTYCH_ENCODER_PRECISION": encoder,
            "DIPTYCH_DECODER_PRECISION": decoder,
        }
        with service_process(parsed.clients, **settings) as client:
            scorecard = evaluate(
                client, entry.id, CONDITIONS["plain"], parsed.scenes, parsed.clients
            )
        scorecards[f"{encoder} / {decoder}"] = scorecard
        runs.append(PrecisionRun(parsed.device, encoder, decoder, task_accuracy(scorecard)))
    print(accuracy_table(scorecards))
    path = record_file(ROOT, entry.id)
    checkpoint = checkpoint_key(resolve_source(entry.source, entry.revision, entry.family, ROOT))
    if (before := read_record(path, checkpoint)) is not None:
        runs = [*(run for run in before.runs if run.device != parsed.device), *runs]
    write_record(path, PrecisionRecord(checkpoint, parsed.scenes, tuple(runs)))


def pairs(manifest: Manifest, device: Device) -> tuple[tuple[Precision, Precision], ...]:
    """Return every pair of encoder and decoder precision, float32 first."""
    encoder = possible_precisions(manifest, "encoder", device)
    return tuple(product(encoder, possible_precisions(manifest, "decoder", device)))


if __name__ == "__main__":
    sys.exit(main())
