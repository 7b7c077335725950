"""`python -m export doctor [MODEL…]`: checks this host and its exported models, one line for each
check.

    ok        memory: 18.2 GB are available; the weights of 2 models take about 0.1 GB
    failure   florence-2-mini: …/decoder.safetensors has sha256 …, not its manifest's

Without MODEL, those of DIPTYCH_MODELS are checked, or else all that are exported. The exit status
is 1 after a failure.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from export.artifacts.store import exported_models
from export.checkpoints.bases import ROOT
from export.checks.golden_answers import golden_offer
from export.resources import BYTES_PER_WEIGHT, available_memory_bytes, free_disk_bytes
from tasks.catalog import model_id_of
from wire.artifacts.devices import decoder_device, encoder_device, has_cuda_card
from wire.artifacts.manifest import (
    DECODER_FILE,
    ArtifactError,
    Manifest,
    read_manifest,
    verify_files,
)
from wire.artifacts.manifest import vision_encoder_file as encoder_file
from wire.artifacts.model_store import artifact_folder, store_home

Verdict = Literal["ok", "warning", "failure"]

_GB = 1e9
_LITTLE_DISK_BYTES = 1e9
_PIN = re.compile(r"([\w.-]+)==([\w.]+)")
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
    names = names or configured or exported_models()
    has_failure = False
    for finding in findings([model_id_of(name) for name in names]):
        print(finding, flush=True)
        has_failure |= finding.verdict == "failure"
    return int(has_failure)


def findings(models: Sequence[str]) -> Iterator[Finding]:
    """Yield the findings about this host, then about each model."""
    yield versions()
    yield devices()
    exports = dict[str, tuple[Path, Manifest]]()
    broken = []
    for model_id in models:
        try:
            folder = artifact_folder(model_id)
            exports[model_id] = folder, read_manifest(folder)
        except ArtifactError as error:
            broken.append(Finding("failure", f"{model_id}: {error}"))
    sizes = [weights_bytes(folder, manifest) for folder, manifest in exports.values()]
    yield memory(sizes, available_memory_bytes())
    yield disk(store_home(), free_disk_bytes(store_home()))
    if not models:
        yield Finding("warning", "models: none is exported; make one with: python -m export MODEL")
    yield from broken
    for model_id, (folder, manifest) in exports.items():
        yield artifacts(model_id, folder, manifest)
        if offer := golden_offer(model_id):
            yield Finding("ok", f"{model_id}: {offer}")


def devices() -> Finding:
    """Compare the devices that are used with those that the driver shows."""
    encoder = encoder_device("auto")
    decoder = decoder_device("auto")
    text = f"devices: encoders run on {encoder}, decoders on {decoder}"
    if has_cuda_card() and "cpu" in (encoder, decoder):
        fix = "install requirements-gpu.txt and a CUDA build of torch"
        return Finding("warning", f"{text}, although the driver shows a GPU; {fix}")
    return Finding("ok", text)


def memory(sizes_bytes: Sequence[float], available_bytes: float | None) -> Finding:
    """Compare the weights of all models with the available memory."""
    total_gb = sum(sizes_bytes) / _GB
    weights = f"the weights of {len(sizes_bytes)} models take about {total_gb:.1f} GB"
    if available_bytes is None:
        text = f"memory: this system does not report the available memory; {weights}"
        return Finding("warning", text)
    verdict: Verdict = "ok" if sum(sizes_bytes) < available_bytes else "failure"
    return Finding(verdict, f"memory: {available_bytes / _GB:.1f} GB are available; {weights}")


def disk(folder: Path, free_bytes: float) -> Finding:
    """Warn of a disk with little room."""
    verdict: Verdict = "ok" if free_bytes >= _LITTLE_DISK_BYTES else "warning"
    return Finding(verdict, f"disk: {free_bytes / _GB:.1f} GB are free in {folder}")


def versions() -> Finding:
    """Compare the installed packages with the pinned ones."""
    pins = dict(_PIN.findall((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    if _version("onnxruntime") == "none" and _version("onnxruntime-gpu") != "none":
        pins.pop("onnxruntime", None)
    others = []
    for name, pin in pins.items():
        if (installed := _version(name)) != pin:
            others.append(f"{name} {installed} instead of {pin}")
    python = f"Python {sys.version.split()[0]}, torch {_version('torch')}"
    packages = "; ".join(others) or "all packages are those of requirements.txt"
    return Finding("warning" if others else "ok", f"versions: {python}; {packages}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def weights_bytes(folder: Path, manifest: Manifest) -> float:
    """Estimate the weights of a model on the devices of this host."""
    encoder = manifest.precision[encoder_device("auto")]["encoder"]
    decoder = manifest.precision[decoder_device("auto")]["decoder"]
    # int8 keeps embeddings in float32
    growth = max(BYTES_PER_WEIGHT[decoder] / _STORED_BYTES, 1.0)
    total = 0.0
    for name, factor in ((encoder_file(encoder), 1.0), (DECODER_FILE, growth)):
        if name in manifest.files and (folder / name).is_file():
            total += factor * (folder / name).stat().st_size
    return total


def artifacts(model_id: str, folder: Path, manifest: Manifest) -> Finding:
    """Hash all files of a model and compare the versions that made them."""
    try:
        verify_files(folder, manifest)
    except ArtifactError as error:
        text = f"{model_id}: {error}; export it again: python -m export {model_id}"
        return Finding("failure", text)
    # A host that only serves has not all libraries of the export, and one with a GPU another torch.
    ignored = {"torch"} if _version("onnxruntime-gpu") != "none" else set()
    others = []
    for name, exported in manifest.versions.items():
        if _version(name) not in (exported, "none") and name not in ignored:
            others.append(f"{name} {exported}")
    text = f"{model_id}: {len(manifest.files)} files match their hashes"
    if not others:
        return Finding("ok", text)
    fix = "export it again with --if-changed"
    return Finding("warning", f"{text}; exported with {', '.join(others)}: {fix}")
