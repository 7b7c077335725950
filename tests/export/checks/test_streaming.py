"""A model that runs layer by layer computes what the whole model computes."""

from pathlib import Path

import pytest
import torch

from export.checks.reference import Reference, StreamedWeights
from export.scenes import render_scene, sample_scene
from runners.decoder.batch import generate_all
from runners.decoder.engines import EagerEngine
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.models.weights import DecoderWeights
from wire.artifacts.manifest import read_manifest

PROMPTS = ("detect red circle", "caption en")
IMAGES = tuple(render_scene(sample_scene(seed), 192) for seed in range(2))
NUM_TOKENS = 4


@pytest.mark.parametrize("max_resident_bytes", [0, 400_000])
def test_streamed_reference_gives_the_features_and_answers_of_the_whole_one(
    checkpoint: Path, max_resident_bytes: int
) -> None:
    whole = Reference.load(checkpoint)
    streamed = Reference.stream(checkpoint, max_resident_bytes)
    features = whole.image_features(IMAGES)
    assert torch.equal(streamed.image_features(IMAGES), features)
    expected = whole.generate_all(PROMPTS, IMAGES, features, NUM_TOKENS)
    assert streamed.generate_all(PROMPTS, IMAGES, features, NUM_TOKENS) == expected
    num_layer_bytes = sum(
        weight.numel() * weight.element_size()
        for name, weight in streamed.model.named_parameters()
        if "layers." in name and not weight.is_meta
    )
    assert num_layer_bytes <= max_resident_bytes


class NoneKept(StreamedWeights):
    """Keeps no layer."""

    __slots__ = ()
    max_resident_bytes = 0


class SomeKept(StreamedWeights):
    """Keeps the first layers."""

    __slots__ = ()
    max_resident_bytes = 1_000_000


@pytest.mark.parametrize("weights_of", [NoneKept, SomeKept])
def test_streamed_decoder_gives_the_logits_of_the_whole_one(
    artifacts: Path, weights_of: type[StreamedWeights]
) -> None:
    manifest = read_manifest(artifacts)
    features = torch.randn(
        manifest.num_image_tokens, manifest.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    logits = []
    answers = []
    for kind in (DecoderWeights, weights_of):
        decoder = load_decoder(artifacts, manifest.family, "float32", "cpu", weights_of=kind)
        request = SequenceRequest(features, decoder.text.prompt_ids([("a", False)]), NUM_TOKENS)
        logits.append(EagerEngine(decoder, 1).prefill([request], 0))
        answers.append(generate_all(decoder, [request])[0].token_ids)
    assert torch.equal(*logits)
    assert answers[0] == answers[1]
