"""The precision record of a model, models/ID/precision.json: its accuracy at each precision.

`python -m laboratory.evaluation.precision` writes it. A record applies to one checkpoint, known by
the hash of its files. An accuracy is named after its row and label in the evaluation's table
("ocr, exact: all images") and lies between 0 and 1. A point is a hundredth.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from export.checkpoints.sources import Source
from export.errors import SourceError
from tasks.catalog import CatalogEntry
from wire.artifacts.manifest import Device, Precision, key_of_hashes

MAX_LOST_POINTS = 1.0
RECORD_FILE = "precision.json"


@dataclass(frozen=True, slots=True)
class PrecisionRun:
    """One evaluation of the served model."""

    device: Device
    encoder: Precision
    decoder: Precision
    accuracy: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PrecisionRecord:
    """All evaluations of one checkpoint, over the same scenes."""

    checkpoint: str  # sha256, hexadecimal
    num_scenes: int
    runs: tuple[PrecisionRun, ...]

    def find(self, device: Device, encoder: Precision, decoder: Precision) -> PrecisionRun | None:
        """Return the run of a pair of precisions, or None if it was not measured."""
        wanted = (device, encoder, decoder)
        return next(
            (run for run in self.runs if (run.device, run.encoder, run.decoder) == wanted), None
        )

    def lost_points(self, run: PrecisionRun) -> dict[str, float]:
        """Return the points of each accuracy that `run` loses against float32 on its device.

        A gain is negative.
        """
        original = self.find(run.device, "float32", "float32")
        if original is None:
            raise SourceError(
                f"the precision record has no float32 run on {run.device} to compare with"
            )
        return {
            name: 100 * (value - run.accuracy[name]) for name, value in original.accuracy.items()
        }

    def check(self, entry: CatalogEntry) -> None:
        """Raise `SourceError` if a default precision of the catalog loses more than
        `MAX_LOST_POINTS`.

        A default without a run passes, because a model is exported before it can be measured.
        """
        for device, parts in entry.precision.items():
            run = self.find(device, parts["encoder"], parts["decoder"])
            for name, points in (self.lost_points(run) if run else {}).items():
                if points > MAX_LOST_POINTS:
                    raise SourceError(
                        f"{entry.id} on {device}: encoder {parts['encoder']}, decoder"
                        f" {parts['decoder']} loses {points:.1f} points of {name}; at most"
                        f" {MAX_LOST_POINTS:.0f} is allowed: choose another precision in"
                        " models/catalog.yaml"
                    )


def record_file(root: Path, model_id: str) -> Path:
    """Return the path of a model's record in the repository at `root`."""
    return root / "models" / model_id / RECORD_FILE


def checkpoint_key(source: Source) -> str:
    """Return the sha256 over the files of a checkpoint, hexadecimal."""
    return key_of_hashes(source.hashes())


def read_record(path: Path, checkpoint: str) -> PrecisionRecord | None:
    """Return the record at `path`, or None if missing or of another checkpoint.

    Raise `SourceError` if invalid.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        runs = tuple(PrecisionRun(**run) for run in values.pop("runs"))
        record = PrecisionRecord(runs=runs, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is not a valid precision record: {error!r}") from error
    return record if record.checkpoint == checkpoint else None


def write_record(path: Path, record: PrecisionRecord) -> None:
    """Write `record` as JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
