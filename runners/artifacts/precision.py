"""In which precision a part of a model runs: the manifest's choice for the device, unless the operator sets one.

Source of the choice: the catalog, as far as `python -m export` found that it holds. Knows nothing of tensors.
"""

from collections.abc import Mapping
from typing import Literal

from runners.artifacts.manifest import ArtifactError, Device, Manifest, Part, Precision, vision_encoder_file

WantedPrecision = Literal["auto", "float32", "int8", "bfloat16", "float16"]

RUNNABLE: Mapping[Device, Mapping[Part, tuple[Precision, ...]]] = {
    "cpu": {"encoder": ("float32", "int8"), "decoder": ("float32", "int8", "bfloat16")},
    "cuda": {"encoder": ("float32", "float16"), "decoder": ("float32", "bfloat16", "float16")},
}


def possible_precisions(manifest: Manifest, part: Part, device: Device) -> tuple[Precision, ...]:
    """Return what `part` of a model can run in on `device`: of an encoder, what was exported."""
    return tuple(
        each for each in RUNNABLE[device][part] if part == "decoder" or vision_encoder_file(each) in manifest.files
    )


def choose_precision(manifest: Manifest, part: Part, device: Device, wanted: WantedPrecision) -> Precision:
    """Return what `part` of a model runs in on `device`; raise `ArtifactError` if it cannot."""
    precision = manifest.precision[device][part] if wanted == "auto" else wanted
    possible = possible_precisions(manifest, part, device)
    if precision not in possible:
        raise ArtifactError(
            f"the {part} of {manifest.model_id} cannot run in {precision} on {device}; "
            f"its artifacts allow {', '.join(possible)}, models/catalog.yaml decides which there are"
        )
    return precision
