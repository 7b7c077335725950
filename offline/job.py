"""A job: task, model and images, and the manifest by which a later run recognises it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Self

from blake3 import blake3

from offline.filesystems import InputError
from service.inference.served_models import ServedModel
from service.settings import Settings

OutputFormat = Literal["parquet", "jsonl", "coco"]
ShardFormat = Literal["parquet", "jsonl"]
_VERSION = 2


@dataclass(frozen=True, slots=True)
class Build:
    """Everything of a host that determines its answers: artifacts, catalog, settings."""

    model: str
    build_key: str  # the model's artifacts
    precision: str  # encoder and decoder
    calibration: str | None  # hash of those of the tasks, and of what is proved
    template: str | None  # the catalog's own prompts for the tasks, one a line
    one_name_per_prompt: bool
    max_image_pixels: int
    max_image_side_px: int
    decoder_max_positions: int
    max_tiles: int

    @classmethod
    def of(cls, model: ServedModel, fields: Mapping[str, Any], settings: Settings) -> Self:
        """Return the build that answers the fields of a job."""
        tasks = [str(step["task"]) for step in fields.get("steps", [fields])]
        calibrations = ""
        for (task, _), calibration in sorted(model.calibrations.items()):  # without and with tiles
            if task in tasks:
                calibrations += repr(calibration)
        if "min_precision" in json.dumps(fields):
            calibrations += "".join(repr(proof.proof) for proof in model.proofs)
        digest = blake3(calibrations.encode()).hexdigest() if calibrations else None
        templates = filter(None, map(model.entry.template, tasks))
        return cls(
            model=model.id,
            build_key=model.manifest.build_key,
            precision=model.precision,
            calibration=digest,
            template="\n".join(templates) or None,
            one_name_per_prompt=model.entry.one_name_per_prompt,
            max_image_pixels=settings.max_image_pixels,
            max_image_side_px=settings.max_image_side_px,
            decoder_max_positions=settings.decoder_max_positions,
            max_tiles=settings.max_tiles,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that determines the rows of the output, and which shard has them."""

    build: Build
    fields: Mapping[str, Any]  # the request's: task included, or steps
    output_format: OutputFormat
    shard_size: int
    num_shards: int
    images: str  # hash of which images are in which shard

    @property
    def shard_format(self) -> ShardFormat:
        return "jsonl" if self.output_format == "jsonl" else "parquet"

    def manifest(self) -> str:
        values = asdict(self)
        document = {"version": _VERSION, **values.pop("build"), **values}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def check(self, manifest: str, place: str) -> None:
        """Raise `InputError` if a manifest is that of another job, with the values that differ."""
        try:
            theirs: dict[str, Any] = dict(json.loads(manifest))
        except (ValueError, TypeError) as error:
            raise InputError(f"{place} is not a manifest: {error}") from error
        if differing := differences(theirs, json.loads(self.manifest())):
            raise InputError(
                f"the output is of another job ({differing}); choose another folder: {place}"
            )


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return the values that differ, by name; empty if there are none."""
    text_of = partial(json.dumps, ensure_ascii=False)
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return "; ".join(f"{n}: {text_of(before.get(n))}, now {text_of(now.get(n))}" for n in names)
