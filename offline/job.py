"""A job: what is asked of which model about which images, and the manifest by which a later run recognises it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from offline.filesystems import InputError
from offline.rows import ShardFormat

OutputFormat = Literal["parquet", "jsonl", "coco"]
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that determines the rows of the output, and which shard has them."""

    model: str
    build_key: str  # of the model's artifacts
    fields: Mapping[str, object]  # of the request, with the task
    precision: str  # of encoder and decoder, as the settings request it
    output_format: OutputFormat
    shard_size: int
    num_shards: int
    images: str  # hash of which images are in which shard

    @property
    def task(self) -> str:
        return str(self.fields["task"])

    @property
    def shard_format(self) -> ShardFormat:
        return "jsonl" if self.output_format == "jsonl" else "parquet"

    def manifest(self) -> str:
        return json.dumps({"version": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"

    def check(self, manifest: str, place: str) -> None:
        """Raise `InputError` if a manifest is that of another job, with the values that differ."""
        ours = json.loads(self.manifest())
        try:
            theirs: dict[str, Any] = dict(json.loads(manifest))
        except (ValueError, TypeError) as error:
            raise InputError(f"{place} is not a manifest: {error}") from error
        differing = [each for each in {**ours, **theirs} if ours.get(each) != theirs.get(each)]
        if differing:
            differences = "; ".join(
                f"{name}: {_shown(theirs.get(name))}, now {_shown(ours.get(name))}" for name in differing
            )
            raise InputError(f"the output is of another job ({differences}); choose another folder: {place}")


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
