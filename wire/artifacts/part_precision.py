"""The precision of encoder and decoder: the operator's, else the manifest's for the device.

The manifest has the catalog's choice, verified by `python -m export`. Knows no tensors.
"""

from collections.abc import Mapping
from typing import Any, Literal

from wire.artifacts.manifest import (
    ArtifactError,
    Device,
    Manifest,
    Part,
    Precision,
    vision_encoder_file,
)

WantedPrecision = Literal["auto", "float32", "int8", "bfloat16", "float16"]

RUNNABLE: Mapping[Device, Mapping[Part, tuple[Precision, ...]]] = {
    "cpu": {"encoder": ("float32", "int8"), "decoder": ("float32", "int8", "bfloat16")},
    "cuda": {"encoder": ("float32", "float16"), "decoder": ("float32", "bfloat16", "float16")},
}


def possible_precisions(manifest: Manifest, part: Part, device: Device) -> tuple[Precision, ...]:
    """Return the precisions of `part` on `device`; an encoder's must be exported."""
    return tuple(
        each
        for each in RUNNABLE[device][part]
        if part == "decoder" or vision_encoder_file(each) in manifest.files
    )


def choose_precision(
    manifest: Manifest, part: Part, device: Device, wanted: WantedPrecision
) -> Precision:
    """Return the precision of `part` on `device`; raise `ArtifactError` if it cannot run in it."""
    precision = manifest.precision[device][part] if wanted == "auto" else wanted
    possible = possible_precisions(manifest, part, device)
    if precision not in possible:
        raise ArtifactError(
            f"the {part} of {manifest.model_id} cannot run in {precision} on {device}; its"
            f" artifacts allow {', '.join(possible)}; models/catalog.yaml lists those that are"
            " exported"
        )
    return precision


def measured_agreement(
    manifest: Manifest, encoder: Precision, decoder: Precision
) -> dict[str, Any] | None:
    """Return the export's measurements of answers at two precisions, or None without any.

    Answers at float32 are not measured: they are the reference.
    """
    answers = manifest.parity.get("answers", {"runs": ()})
    for run in answers["runs"]:
        if (run["encoder"], run["decoder"], run["pictures"]) == (
            encoder,
            decoder,
            answers["decided_by"],
        ):
            return {
                "pictures": run["pictures"],
                "num_pictures": run["num_pictures"],
                **run["agreement"],
            }
    return None
