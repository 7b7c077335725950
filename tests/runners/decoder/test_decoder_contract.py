"""The contract of decoders, for the fake and the real ones."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from runners.decoder.kv_cache import KeyValueCache
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.tokens.errors import SequenceTooLong
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.fake_decoder import FakeDecoder
from wire.artifacts.manifest import read_manifest


@pytest.fixture(params=["fake", *EMBEDDED])
def decoder(request: pytest.FixtureRequest, exported: ModelStore) -> Decoder[Any]:
    if request.param == "fake":
        return FakeDecoder()
    return load(exported.newest(request.param))


def load(artifacts: Path, max_positions: int = 0) -> Decoder[Any]:
    return load_decoder(artifacts, read_manifest(artifacts).family, "float32", "cpu", max_positions)


def requests(decoder: Decoder[Any]) -> list[SequenceRequest]:
    prompts = [decoder.prompt_ids([(text, False)]) for text in ("abc", "a")]
    return [SequenceRequest(torch.zeros(16, 128), prompt, max_new_tokens=4) for prompt in prompts]


def test_prompt_ids_differ_by_prompt(decoder: Decoder[Any]) -> None:
    assert decoder.prompt_ids([("abc", False)]) != decoder.prompt_ids([("cab", False)])


def test_detokenized_pieces_concatenate_to_the_text(decoder: Decoder[Any]) -> None:
    stream = decoder.text_stream()
    assert "abc" in "".join(map(stream.push, decoder.prompt_ids([("abc", False)])))


def test_slots_take_the_memory_that_is_counted_for_them(exported: ModelStore) -> None:
    for model_id in EMBEDDED:
        decoder = load(exported.newest(model_id), max_positions=300)
        cache = decoder.new_cache(3)
        kept = [getattr(cache, name, None) for name in ("cross_attention", "self_attention")]
        allocated = sum(each._memory.nbytes for each in kept if isinstance(each, KeyValueCache))
        assert allocated == 3 * decoder.slot_bytes()
        with torch.inference_mode():
            assert decoder.prefill(cache, requests(decoder), 0).shape[1] == decoder.num_tokens


def test_a_step_returns_one_row_of_logits_per_sequence(decoder: Decoder[Any]) -> None:
    with torch.inference_mode():
        cache = decoder.new_cache(2)
        logits = decoder.prefill(cache, requests(decoder), 0)
        after = decoder.decode_step(cache, torch.tensor([3, 4]))
    assert logits.shape == after.shape
    assert logits.shape[0] == 2
    assert not torch.equal(logits, after)


def test_image_and_prompt_must_fit_the_positions(decoder: Decoder[Any]) -> None:
    assert decoder.max_new_tokens(4) >= 1
    with pytest.raises(SequenceTooLong):
        decoder.max_new_tokens(100_000)


def cache_bytes(cache: Any) -> int:
    parts = [getattr(cache, field.name) for field in fields(cache)]
    return sum(part._memory.nbytes for part in parts if isinstance(part, KeyValueCache))


@torch.inference_mode()
def test_fewer_positions_make_smaller_slots_and_the_same_logits(artifacts: Path) -> None:
    whole = load(artifacts)
    limited = load(artifacts, 64)
    caches = [decoder.new_cache(2) for decoder in (whole, limited)]
    logits = [
        decoder.prefill(cache, requests(decoder), 0)
        for decoder, cache in zip((whole, limited), caches, strict=True)
    ]
    assert cache_bytes(caches[1]) < cache_bytes(caches[0]) / 4
    assert torch.equal(*logits)


def test_fewer_positions_hold_fewer_tokens(artifacts: Path) -> None:
    limited = load(artifacts, 64)
    assert limited.max_new_tokens(20) <= 64
    with pytest.raises(SequenceTooLong, match=r"at most 6[34] are allowed"):
        limited.max_new_tokens(65)
    assert load(artifacts, 1_000_000).max_new_tokens(20) == load(artifacts).max_new_tokens(20)
