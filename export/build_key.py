"""One hash over everything that decides what an export produces: checkpoint, precision, libraries, format.

Two exports with the same key need not both be made.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from export.precision_record import PrecisionRecord
from runners.artifacts.manifest import Device, Part, Precision, sha256_of

DefaultPrecision = Mapping[Device, Mapping[Part, Precision]]

EXPORT_FORMAT = 3  # raise it when the export writes something else than before

_LIBRARIES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "optimum",
    "optimum-onnx-naf",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


def library_versions() -> dict[str, str]:
    """Return the installed version of every library that takes part in an export."""
    return {name: version(name) for name in _LIBRARIES}


def build_key(
    files: Iterable[Path], precision: DefaultPrecision, record: PrecisionRecord | None, versions: dict[str, str]
) -> str:
    """Return the key of an export of `files`, hexadecimal."""
    inputs = {
        "export_format": EXPORT_FORMAT,
        "files": [(path.name, sha256_of(path)) for path in files],
        "precision": precision,
        "record": record and asdict(record),
        "versions": versions,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
