"""Features and tokens on the card equal those of the CPU, where passes and choices run eagerly.

On the CPU, tests of export and runners compare them with transformers.
"""

import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch

from runners.decoder.batch import generate_all
from runners.decoder.sequences import GeneratedSequence
from runners.encoder.session import CudaOptions, Encoder, load_encoder
from tests.gpu.card import Card
from tests.gpu.models import Model, requests
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import Device

pytestmark = pytest.mark.gpu

NUM_IMAGES = 8
NUM_TOKENS = 32
MIN_COSINE = 0.999
# Sums in another order change the best token where two are nearly equal: rarely within a few
# hundred tokens.
MIN_EQUAL = 0.9
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "3 beams": {"num_beams": 3},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 1},
    "constrained": {"grammar": "start: <[0-999]>*"},  # tokens by their ids
}


def devices(_model: Model) -> list[str]:
    return [encoder_device("auto"), decoder_device("auto")]


def test_the_card_is_chosen(card: Card) -> None:
    assert card.run(devices, "florence-2-mini") == ["cuda", "cuda"]


def cosine(model: Model) -> float:
    return _least_cosine(model, model.encoder())


def cosine_of_tensorrt(model: Model) -> float:
    precision = model.manifest.precision["cuda"]["encoder"]
    options = CudaOptions(provider="tensorrt")
    return _least_cosine(model, load_encoder(model.folder, 0, precision, "cuda", options))


def _least_cosine(model: Model, encoder: Encoder) -> float:
    """Return the least cosine of features to those in float32 on the CPU."""
    images = model.images(NUM_IMAGES)
    expected = model.encoder("cpu", "float32").encode(images).flatten(0, 1)
    features = encoder.encode(images).cpu().flatten(0, 1)
    return float(torch.cosine_similarity(features, expected, dim=-1).min())  # NaN if a feature is


def test_features_equal_those_of_the_cpu(real_card: Card, model_id: str) -> None:
    assert real_card.run(cosine, model_id) >= MIN_COSINE


def test_features_of_tensorrt_equal_those_of_the_cpu(real_card: Card, model_id: str) -> None:
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError as error:
        pytest.skip(f"TensorRT is not installed: {error}")
    assert real_card.run(cosine_of_tensorrt, model_id) >= MIN_COSINE


def equal_share(answers: list[GeneratedSequence], others: list[GeneratedSequence]) -> float:
    """Return the share of answers with equal tokens."""
    pairs = zip(answers, others, strict=True)
    return sum(answer.token_ids == other.token_ids for answer, other in pairs) / len(answers)


def tokens(model: Model, kind: str) -> float:
    """Return the share of equal answers of decoders in float32 over the same features."""
    features = model.encoder("cpu", "float32").encode(model.images(NUM_IMAGES))
    answers = []
    names: tuple[Device, Device] = ("cpu", "cuda")
    for device in names:
        decoder = model.decoder(device, "float32")
        batch = requests(decoder, list(features.to(device)), NUM_TOKENS, **OPTIONS[kind])
        # Lengths differ, so that sequences move to freed slots while a pass runs.
        for index, request in enumerate(batch):
            batch[index] = replace(request, max_new_tokens=NUM_TOKENS - 3 * index)
        answers.append(generate_all(decoder, batch))
    return equal_share(*answers)


@pytest.mark.parametrize("kind", OPTIONS)
def test_tokens_equal_those_of_the_cpu(real_card: Card, model_id: str, kind: str) -> None:
    assert real_card.run(tokens, model_id, kind) >= MIN_EQUAL


def test_a_card_that_computes_nothing_is_noticed(fake_card: Card) -> None:
    assert not fake_card.run(cosine, "florence-2-mini") >= MIN_COSINE


@pytest.mark.long
@pytest.mark.parametrize("kind", OPTIONS)
def test_tokens_of_a_card_that_computes_nothing_differ(fake_card: Card, kind: str) -> None:
    assert fake_card.run(tokens, "florence-2-mini", kind) < MIN_EQUAL
