"""Measures a model's accuracy at each precision and records it beside the catalog.

    python -m laboratory.evaluation.precision MODEL

    for every precision of the encoder and every precision of the decoder that the device supports:
        start the service, evaluate it on unseen scenes
    write models/MODEL/precision.json, export again: a default precision that loses too much is
    refused

Only the given device is measured; the record's runs on the other device are kept if they are of the
same checkpoint.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product

import httpx

from export.__main__ import main as export
from export.checkpoints.bases import ROOT
from export.checkpoints.errors import ExportError
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
from export.scenes import Scorecard
from laboratory.evaluation import CONDITIONS, accuracy_table, evaluate, task_accuracy
from laboratory.evaluation.service_process import service_process
from tasks.catalog import CatalogEntry, CatalogError
from wire.artifacts.manifest import Device, Manifest, Precision, read_manifest
from wire.artifacts.model_store import artifact_folder
from wire.artifacts.part_precision import possible_precisions

_NUM_SCENES = 500
_CONDITION = CONDITIONS["plain"]

Score = Callable[[httpx.Client, str, int, int], Scorecard]  # model, numbers of scenes and clients


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on scenes of shapes; return the exit status."""
    parser = precision_parser("python -m laboratory.evaluation.precision", __doc__ or "")
    parser.add_argument("model", metavar="MODEL", help="an id of models/catalog.yaml")
    return run(parser.parse_args(arguments), score_shapes)


def run(parsed: argparse.Namespace, score: Score) -> int:
    """Measure and record one model; return the exit status."""
    try:
        entry = find_entry(parsed.model)
        if export(["--if-changed", entry.id]):
            return 1
        _measure(entry, parsed, score)
    except (ExportError, CatalogError) as error:
        print(f"{parsed.model}: {error}", file=sys.stderr)
        return 1
    return export(["--if-changed", entry.id])


def _measure(entry: CatalogEntry, parsed: argparse.Namespace, score: Score) -> None:
    """Evaluate every pair of precisions, print the table and write the record."""
    path = record_file(ROOT, entry.id)
    checkpoint = checkpoint_key(resolve_source(entry.source, entry.revision, entry.family, ROOT))
    evaluations = {
        pair: _evaluate(entry, pair, parsed, score)
        for pair in pairs(read_manifest(artifact_folder(entry.id)), parsed.device)
    }
    print(
        accuracy_table(
            {f"{encoder} / {decoder}": each for (encoder, decoder), each in evaluations.items()}
        )
    )
    runs = [
        PrecisionRun(parsed.device, encoder, decoder, task_accuracy(each))
        for (encoder, decoder), each in evaluations.items()
    ]
    before = read_record(path, checkpoint)
    kept = [run for run in before.runs if run.device != parsed.device] if before else []
    write_record(path, PrecisionRecord(checkpoint, parsed.scenes, (*kept, *runs)))


def pairs(manifest: Manifest, device: Device) -> tuple[tuple[Precision, Precision], ...]:
    """Return every pair of encoder and decoder precision, float32 first."""
    encoder = possible_precisions(manifest, "encoder", device)
    return tuple(product(encoder, possible_precisions(manifest, "decoder", device)))


def _evaluate(
    entry: CatalogEntry, pair: tuple[Precision, Precision], parsed: argparse.Namespace, score: Score
) -> Scorecard:
    encoder, decoder = pair
    print(
        f"{entry.id} on {parsed.device}: encoder {encoder}, decoder {decoder},"
        f" {parsed.scenes} scenes",
        flush=True,
    )
    settings = {
        "DIPTYCH_MODELS": entry.id,
        "DIPTYCH_DEVICE": parsed.device,
        "DIPTYCH_ENCODER_PRECISION": encoder,
        "DIPTYCH_DECODER_PRECISION": decoder,
    }
    with service_process(parsed.clients, **settings) as client:
        return score(client, entry.id, parsed.scenes, parsed.clients)


def score_shapes(client: httpx.Client, model: str, num_scenes: int, num_clients: int) -> Scorecard:
    """Score the answers about unseen scenes."""
    return evaluate(client, model, _CONDITION, num_scenes, num_clients)


def precision_parser(name: str, documentation: str) -> argparse.ArgumentParser:
    """Return a parser of the options."""
    parser = argparse.ArgumentParser(name, description=documentation.partition("\n")[0])
    add = parser.add_argument
    default = "default: %(default)s"
    add("--scenes", type=int, default=_NUM_SCENES, metavar="N", help=default)
    add("--clients", type=int, default=8, metavar="N", help=f"concurrent requests; {default}")
    add("--device", choices=("cpu", "cuda"), default="cpu", help=default)
    return parser


if __name__ == "__main__":
    sys.exit(main())
