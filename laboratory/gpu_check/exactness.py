"""Features and tokens on the device against the CPU, where passes and choices run eagerly."""

from dataclasses import replace
from typing import Any

import torch

from laboratory.gpu_check.parts import Model, equal_share, requests
from laboratory.gpu_check.report import Verdict
from runners.decoder.batch import generate_all
from wire.artifacts.manifest import Device

_NUM_IMAGES = 8
_NUM_TOKENS = 32
# Sums in another order change the best token where two are nearly equal: rarely within a few
# hundred tokens.
_MIN_EQUAL_ANSWERS = 0.9
_MIN_COSINE = 0.999


def check_features(model_id: str) -> Verdict:
    """Compare the encoder with float32 on the CPU."""
    model = Model.of(model_id)
    images = model.images(_NUM_IMAGES)
    expected = model.encoder("cpu", "float32").encode(images).flatten(0, 1)
    features = model.encoder().encode(images).cpu().flatten(0, 1)
    lowest = float(torch.cosine_similarity(features, expected, dim=-1).min())  # NaN if a feature is
    precision = model.manifest.precision["cuda"]["encoder"]
    measured = {"precision": precision, "min cosine": round(lowest, 6)}
    return Verdict(measured, f"min cosine >= {_MIN_COSINE}", lowest >= _MIN_COSINE)


def check_tokens(model_id: str, options: dict[str, Any]) -> Verdict:
    """Compare answers of the decoder in float32 over the same features."""
    model = Model.of(model_id)
    features = model.encoder("cpu", "float32").encode(model.images(_NUM_IMAGES))
    devices: tuple[Device, Device] = ("cpu", "cuda")
    answers = []
    for device in devices:
        decoder = model.decoder(device, "float32")
        batch = requests(decoder, list(features.to(device)), _NUM_TOKENS, **options)
        # Lengths differ, so that sequences move to freed slots while a pass runs.
        for index, request in enumerate(batch):
            batch[index] = replace(request, max_new_tokens=_NUM_TOKENS - 3 * index)
        answers.append(generate_all(decoder, batch))
    share = equal_share(*answers)
    aim = f"equal answers >= {_MIN_EQUAL_ANSWERS}"
    return Verdict({"equal answers": share}, aim, share >= _MIN_EQUAL_ANSWERS)
