"""The contract of decoders, for the fake and the real ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runners.decoder.engines import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.fake_decoder import FakeDecoder
from wire.artifacts.manifest import read_manifest


@pytest.fixture(params=["fake", *EMBEDDED])
def decoder(request: pytest.FixtureRequest, exported: ModelStore) -> Decoder:
    if request.param == "fake":
        return FakeDecoder()
    return load(exported.newest(request.param))


def load(artifacts: Path, max_positions: int = 0) -> Decoder:
    return load_decoder(artifacts, read_manifest(artifacts).family, "float32", "cpu", max_positions)


def hidden_size(decoder: Decoder) -> int:
    return decoder.embed(torch.zeros(1, dtype=torch.long)).shape[-1]


def test_the_words_of_a_prompt_are_those_within_its_frame(decoder: Decoder) -> None:
    text = decoder.text
    prompt_ids = text.prompt_ids([("abc", False)])
    assert prompt_ids == (*text.start_ids, *text.prompt_words(prompt_ids).token_ids, *text.end_ids)
    assert prompt_ids != text.prompt_ids([("cab", False)])
    assert "abc" in "".join(map(text.tokenizer.text_stream(), prompt_ids))


@torch.inference_mode()
def test_images_of_different_sizes_share_a_prefill(decoder: Decoder) -> None:
    """An image may have several groups of features, such as tiles."""
    prompt = decoder.text.prompt_ids([("abc", False)])
    generator = torch.Generator().manual_seed(0)
    width = hidden_size(decoder)
    images = [torch.randn(size, width, generator=generator) for size in (16, 24, 9)]
    requests = [SequenceRequest(image, prompt, max_new_tokens=4) for image in images]
    together = EagerEngine(decoder, 3).prefill(requests, 0)
    for row, request in zip(together, requests, strict=True):
        (alone,) = EagerEngine(decoder, 1).prefill([request], 0)
        torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)


def test_positions_are_at_most_those_of_the_model(artifacts: Path) -> None:
    whole = load(artifacts).shape
    assert load(artifacts, 64).shape == replace(whole, num_positions=64)
    assert load(artifacts, 1_000_000).shape == whole
