"""Providers of the encoder; features and tokens on the device against float32 on the CPU."""

from dataclasses import replace

import torch

from laboratory.gpu_check.parts import Model, requests
from laboratory.gpu_check.verdicts import Verdict
from runners.decoder.batch import generate_all
from wire.artifacts.manifest import Device

_NUM_IMAGES = 8
_NUM_TOKENS = 32
# Sums in another order change the best token where two are nearly equal: rarely within a few
# hundred tokens.
_MIN_EQUAL_ANSWERS = 0.9
_MIN_COSINE = 0.999


def check_features(model: Model, device: Device) -> Verdict:
    """Compare the device's encoder with float32 on the CPU."""
    images = model.images(_NUM_IMAGES)
    expected = model.encoder("cpu", "float32").encode(images)
    features = model.encoder(device).encode(images)
    rows = torch.stack([features.cpu(), expected]).flatten(1, 2)
    cosines = torch.cosine_similarity(rows[0], rows[1], dim=-1)
    lowest = float(cosines.min())  # NaN if a feature is
    measured = {
        "precision": model.manifest.precision[device]["encoder"],
        "min cosine": round(lowest, 6),
    }
    return Verdict(
        "features", model.id, measured, f"min cosine >= {_MIN_COSINE}", lowest >= _MIN_COSINE
    )


def check_tokens(model: Model, device: Device, num_beams: int) -> Verdict:
    """Compare answers of the device's decoder in float32 with the CPU's, over the same features."""
    features = list(model.encoder("cpu", "float32").encode(model.images(_NUM_IMAGES)))
    answers = {}
    for name, decoder in (
        ("cpu", model.decoder("cpu", "float32")),
        (device, model.decoder(device, "float32")),
    ):
        wanted = requests(
            decoder, [each.to(name) for each in features], _NUM_TOKENS, num_beams=num_beams
        )
        # Lengths differ, so that sequences move to freed slots while a pass runs.
        wanted = [
            replace(each, max_new_tokens=_NUM_TOKENS - 3 * index)
            for index, each in enumerate(wanted)
        ]
        answers[decoder] = [written.token_ids for written in generate_all(decoder, wanted)]
    expected, found = answers.values()
    share = sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)
    return Verdict(
        f"tokens, {num_beams} beams",
        model.id,
        {"equal answers": share},
        f">= {_MIN_EQUAL_ANSWERS}",
        share >= _MIN_EQUAL_ANSWERS,
    )
