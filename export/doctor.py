"""`python -m export doctor [MODEL…]`: checks this host and its exported models, one line for each
check.

    ok        memory: 18.2 GB are available; the weights of 2 models take about 0.1 GB
    failure   florence-2-mini: …/decoder.safetensors has sha256 …, not its manifest's

Without MODEL, those of DIPTYCH_MODELS are checked, or else all that are exported. The exit status
is 1 after a failure.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from export.artifacts.store import exported_models
from export.resources import BYTES_PER_WEIGHT, free_disk_bytes
from tasks.catalog import model_id_of
from wire.artifacts.devices import decoder_device, encoder_device, has_cuda_card
from wire.artifacts.manifest import (
    DECODER_FILE,
    ArtifactError,
    Manifest,
    read_manifest,
    verify_files,
    vision_encoder_file,
)
from wire.artifacts.model_store import artifact_folder, store_home

Verdict = Literal["ok", "warning", "failure"]

_GB = 1e9
_LITTLE_DISK_BYTES = 1e9
_STORED_BYTES = 2  # of a decoder's weight, in most checkpoints


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<9} {self.text}"


def main(names: Sequence[str]) -> int:
    """Print the findings; return the exit status."""
    configured = os.environ.get("DIPTYCH_MODELS", "").replace(",", " ").split()
    models = list(map(model_id_of, names or configured or exported_models()))
    has_failure = False
    for finding in findings(models):
        print(finding, flush=True)
        has_failure |= finding.verdict == "failure"
    return int(has_failure)


def findings(models: Sequence[str]) -> Iterator[Finding]:
    """Yield the findings about this host, then about each model."""
    yield devices()
    num_bytes = 0.0
    of_models = []
    for model_id in models:
        try:
            folder = artifact_folder(model_id)
            manifest = read_manifest(folder)
            num_bytes += weights_bytes(folder, manifest)
            verify_files(folder, manifest)
        except ArtifactError as error:
            text = f"{model_id}: {error}; export it again: python -m export {model_id}"
            of_models.append(Finding("failure", text))
        else:
            text = f"{model_id}: {len(manifest.files)} files match their hashes"
            of_models.append(Finding("ok", text))
    weights = f"the weights of {len(models)} models take about {num_bytes / _GB:.1f} GB"
    yield memory(num_bytes, weights)
    yield disk(store_home())
    yield from of_models


def devices() -> Finding:
    """Compare the devices that are used with those that the driver shows."""
    encoder = encoder_device("auto")
    decoder = decoder_device("auto")
    text = f"devices: encoders run on {encoder}, decoders on {decoder}"
    if has_cuda_card() and "cpu" in (encoder, decoder):
        fix = "install requirements-gpu.txt and a CUDA build of torch"
        return Finding("warning", f"{text}, although the driver shows a GPU; {fix}")
    return Finding("ok", text)


def memory(num_bytes: float, weights: str) -> Finding:
    """Compare the weights of all models with the available memory."""
    available_bytes = psutil.virtual_memory().available
    verdict: Verdict = "ok" if num_bytes < available_bytes else "failure"
    return Finding(verdict, f"memory: {available_bytes / _GB:.1f} GB are available; {weights}")


def disk(folder: Path) -> Finding:
    """Warn of a disk with little room."""
    free_bytes = free_disk_bytes(folder)
    verdict: Verdict = "ok" if free_bytes >= _LITTLE_DISK_BYTES else "warning"
    return Finding(verdict, f"disk: {free_bytes / _GB:.1f} GB are free in {folder}")


def weights_bytes(folder: Path, manifest: Manifest) -> float:
    """Estimate the weights of a model on the devices of this host."""
    encoder = manifest.precision[encoder_device("auto")]["encoder"]
    decoder = manifest.precision[decoder_device("auto")]["decoder"]
    # int8 keeps embeddings in float32
    growth = max(BYTES_PER_WEIGHT[decoder] / _STORED_BYTES, 1.0)
    total = 0.0
    for name, factor in ((vision_encoder_file(encoder), 1.0), (DECODER_FILE, growth)):
        if name in manifest.files and (folder / name).is_file():
            total += factor * (folder / name).stat().st_size
    return total
