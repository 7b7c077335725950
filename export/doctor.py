"""`python -m export doctor [MODEL…]`: checks this host and its exported models, one line for each
check.

    ok        devices: encoders run on cuda, decoders on cuda
    failure   florence-2-mini: …/decoder.safetensors has sha256 …, not its manifest's

Without MODEL, those of DIPTYCH_MODELS are checked, or else all that are exported. The exit status
is 1 after a failure.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from export.artifacts.store import exported_models, verified
from export.checkpoints.bases import CATALOG_FILE
from export.resources import free_disk_bytes
from tasks.catalog import load_catalog, model_id_of
from wire.artifacts.devices import decoder_device, encoder_device, has_cuda_card
from wire.artifacts.manifest import ArtifactError
from wire.artifacts.model_store import store_home

Verdict = Literal["ok", "warning", "failure"]

_GB = 1e9
_LITTLE_DISK_BYTES = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<9} {self.text}"


def main(names: Sequence[str]) -> int:
    configured = os.environ.get("DIPTYCH_MODELS", "").replace(",", " ").split()
    models = list(map(model_id_of, names or configured or exported_models()))
    return report(chain([devices(), disk(store_home())], map(artifacts, models)))


def report(findings: Iterable[Finding]) -> int:
    """Print each finding as soon as it is made; return the exit status, 1 after a failure."""
    has_failure = False
    for finding in findings:
        print(finding, flush=True)
        has_failure |= finding.verdict == "failure"
    return int(has_failure)


def devices() -> Finding:
    """Compare the devices that are used with those that the driver shows."""
    encoder = encoder_device("auto")
    decoder = decoder_device("auto")
    text = f"devices: encoders run on {encoder}, decoders on {decoder}"
    if has_cuda_card() and "cpu" in (encoder, decoder):
        fix = "install requirements-gpu.txt and a CUDA build of torch"
        return Finding("warning", f"{text}, although the driver shows a GPU; {fix}")
    return Finding("ok", text)


def disk(folder: Path) -> Finding:
    free_bytes = free_disk_bytes(folder)
    verdict: Verdict = "ok" if free_bytes >= _LITTLE_DISK_BYTES else "warning"
    return Finding(verdict, f"disk: {free_bytes / _GB:.1f} GB are free in {folder}")


def artifacts(model_id: str) -> Finding:
    entry = load_catalog(CATALOG_FILE).get(model_id)
    if entry is not None and entry.engine is not None:
        return Finding("ok", f"{model_id}: an engine serves it")
    try:
        _, manifest = verified(model_id)
    except ArtifactError as error:
        text = f"{model_id}: {error}; export it again: python -m export {model_id}"
        return Finding("failure", text)
    return Finding("ok", f"{model_id}: {len(manifest.files)} files match their hashes")
