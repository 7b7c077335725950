"""`python -m export doctor [MODEL…]`: checks this host and its exported models, one line for each
check.

    ok        memory: 18.2 GB are available; the weights of 2 models take about 0.1 GB
    failure   florence-2-mini: …/decoder.safetensors has sha256 …, its manifest says …

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
from export.resources import available_memory_bytes, free_disk_bytes
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
# from 16 bits, as most are stored
_DECODER_GROWTH = {"float32": 2.0, "int8": 1.0, "bfloat16": 1.0, "float16": 1.0}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<9} {self.text}"


def main(model_ids: Sequence[str]) -> int:
    """Print the findings; return the exit status."""
    models = (
        list(model_ids)
        or os.environ.get("DIPTYCH_MODELS", "").replace(",", " ").split()
        or exported_models()
    )
    has_failure = False
    for finding in findings([model_id_of(model) for model in models]):
        print(finding, flush=True)
        has_failure |= finding.verdict == "failure"
    return int(has_failure)


def findings(models: Sequence[str]) -> Iterator[Finding]:
    """Yield the findings about this host, then about each model."""
    yield versions()
    encoder = encoder_device("auto")
    decoder = decoder_device("auto")
    text = f"devices: encoders run on {encoder}, decoders on {decoder}"
    if has_cuda_card() and "cpu" in (encoder, decoder):
        fix = "install requirements-gpu.txt and a CUDA build of torch"
        yield Finding("warning", f"{text}, although the driver shows a GPU; {fix}")
    else:
        yield Finding("ok", text)
    found: dict[str, tuple[Path, Manifest]] = {}
    broken: list[Finding] = []
    for model_id in models:
        try:
            folder = artifact_folder(model_id)
            found[model_id] = folder, read_manifest(folder)
        except ArtifactError as error:
            broken.append(Finding("failure", f"{model_id}: {error}"))
    yield memory([weights_bytes(*each) for each in found.values()], available_memory_bytes())
    yield disk(store_home(), free_disk_bytes(store_home()))
    if not models:
        yield Finding("warning", "models: none is exported; make one with: python -m export MODEL")
    yield from broken
    for model_id, (folder, manifest) in found.items():
        yield artifacts(model_id, folder, manifest)
        if offer := golden_offer(model_id):
            yield Finding("ok", f"{model_id}: {offer}")


def memory(weights_bytes: Sequence[float], available_bytes: float | None) -> Finding:
    """Compare the weights of all models with the available memory."""
    needed = (
        f"the weights of {len(weights_bytes)} models take about {sum(weights_bytes) / _GB:.1f} GB"
    )
    if available_bytes is None:
        return Finding(
            "warning", f"memory: this system does not report the available memory; {needed}"
        )
    is_enough = sum(weights_bytes) < available_bytes
    return Finding(
        "ok" if is_enough else "failure",
        f"memory: {available_bytes / _GB:.1f} GB are available; {needed}",
    )


def disk(folder: Path, free_bytes: float) -> Finding:
    """Warn of a disk with little room."""
    is_enough = free_bytes >= _LITTLE_DISK_BYTES
    return Finding(
        "ok" if is_enough else "warning", f"disk: {free_bytes / _GB:.1f} GB are free in {folder}"
    )


def versions() -> Finding:
    """Compare the installed packages with the pinned ones."""
    pins = dict(_PIN.findall((ROOT / "requirements.txt").read_text(encoding="utf-8")))
    installed = {name: _version(name) for name in pins}
    others = [
        f"{name} {installed[name]} instead of {pin}"
        for name, pin in pins.items()
        if installed[name] != pin
    ]
    if (
        "onnxruntime" in pins
        and installed["onnxruntime"] == "none"
        and _version("onnxruntime-gpu") != "none"
    ):
        others = [each for each in others if not each.startswith("onnxruntime ")]
    python = f"Python {sys.version.split()[0]}, torch {_version('torch')}"
    text = f"versions: {python}; " + (
        "; ".join(others) or "all packages are those of requirements.txt"
    )
    return Finding("warning" if others else "ok", text)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def weights_bytes(folder: Path, manifest: Manifest) -> float:
    """Estimate the weights of a model on the devices of this host."""
    encoder = manifest.precision[encoder_device("auto")]["encoder"]
    decoder = manifest.precision[decoder_device("auto")]["decoder"]
    sizes = {
        name: (folder / name).stat().st_size for name in manifest.files if (folder / name).is_file()
    }
    return sizes.get(encoder_file(encoder), 0) + _DECODER_GROWTH[decoder] * sizes.get(
        DECODER_FILE, 0
    )


def artifacts(model_id: str, folder: Path, manifest: Manifest) -> Finding:
    """Hash all files of a model and compare the versions that made them."""
    try:
        verify_files(folder, manifest)
    except ArtifactError as error:
        return Finding(
            "failure", f"{model_id}: {error}; export it again: python -m export {model_id}"
        )
    # A host that only serves has not all libraries of the export, and one with a GPU another torch.
    same = {"torch"} if _version("onnxruntime-gpu") != "none" else set()
    others = [
        f"{name} {made}"
        for name, made in manifest.versions.items()
        if _version(name) not in (made, "none") and name not in same
    ]
    text = f"{model_id}: {len(manifest.files)} files match their hashes"
    if others:
        return Finding(
            "warning",
            f"{text}; exported with {', '.join(others)}: export it again with --if-changed",
        )
    return Finding("ok", text)
