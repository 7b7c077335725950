"""Prefills in fixed shapes, captured by a fake that computes eagerly."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runners.decoder.captured_passes import (
    Capture,
    CapturedPrefills,
    CudaGraph,
    FixedPrefill,
    prefill_shapes,
)
from runners.decoder.engines import EagerEngine, GraphEngine
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.device_traffic import capture_eagerly, graph_engine
from tests.support.fake_decoder import FAKE_SHAPE
from wire.artifacts.manifest import read_manifest

CPU = torch.device("cpu")
SHAPE = replace(FAKE_SHAPE, num_positions=300, num_image_tokens=7)
REQUEST = SequenceRequest(torch.ones(7, 2), (5, 6), max_new_tokens=4)


class Computed:
    """Captured prefills whose passes are noted."""

    def __init__(self, capture: Capture = capture_eagerly) -> None:
        self.ran: list[FixedPrefill] = []
        shapes = prefill_shapes(SHAPE, num_slots=20)
        self.prefills = CapturedPrefills(self._compute, shapes, hidden_size=2, max_beams=2)
        self.prefills.capture_all(capture, CPU)

    def _compute(self, inputs: FixedPrefill) -> Tensor:
        copied = [getattr(inputs, field.name).clone() for field in fields(inputs)]
        self.ran.append(FixedPrefill(*copied))
        return torch.zeros(1)


def test_shapes_are_limited_by_slots_and_positions() -> None:
    shapes = prefill_shapes(SHAPE, num_slots=5)
    assert [(shape.num_sequences, shape.length) for shape in shapes[:3]] == [
        (4, 80),
        (4, 64),
        (4, 48),
    ]
    assert len(shapes) == 15
    wide = prefill_shapes(replace(SHAPE, num_positions=2000, num_image_tokens=1024), 64)
    assert {shape.num_sequences for shape in wide} == {1, 2, 4}


def test_sequences_run_in_parts_without_padded_rows() -> None:
    computed = Computed()
    requests = [replace(REQUEST, prompt_ids=(5,) * (1 + index)) for index in range(11)]
    computed.prefills.run(requests, [[(slot, 0, slot, 0, 9)] for slot in range(11)])
    assert [len(inputs.rows) for inputs in computed.ran] == [8, 2, 1]
    assert torch.cat([inputs.rows for inputs in computed.ran]).tolist() == [*range(11)]
    assert {inputs.features.shape[1] for inputs in computed.ran} == {32}  # 18 tokens


def test_inputs_have_features_tokens_and_slots() -> None:
    computed = Computed()
    claimed = [[(3, 0, 1, 0, 9), (4, 0, 1, 1, 9)], [(2, 0, 2, 0, 8)]]
    computed.prefills.run([REQUEST, replace(REQUEST, prompt_ids=(9,))], claimed)
    (inputs,) = computed.ran
    assert inputs.token_ids[:, :10].tolist() == [[-1] * 7 + [5, 6, 0], [-1] * 7 + [9, 0, 0]]
    assert inputs.num_prefix_tokens.tolist() == [9, 8]
    # a single slot is repeated
    assert inputs.claimed.tolist() == [[*map(list, claimed[0])], [[2, 0, 2, 0, 8]] * 2]
    embeds = inputs.embeds(torch.full((2, 16, 2), 3.0))
    assert embeds[:, :, 0].tolist() == [[1.0] * 7 + [3.0] * 9] * 2


@pytest.mark.parametrize(
    "request_", [replace(REQUEST, prompt_ids=(5,) * 74), replace(REQUEST, num_beams=3),
                 replace(REQUEST, adapter="tuned")], ids=["long", "many beams", "adapter"],
)  # fmt: skip
def test_other_prefills_are_not_captured(request_: SequenceRequest) -> None:
    prefills = Computed().prefills
    assert prefills.hold([REQUEST, replace(REQUEST, prompt_ids=(5,) * 73, num_beams=2)])
    assert not prefills.hold([REQUEST, request_])


def test_after_a_failed_capture_prefills_are_eager(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_compute: Callable[[], Tensor]) -> CudaGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert not Computed(capture).prefills.hold([REQUEST])
    assert [record.message for record in caplog.records] == ["no CUDA graph for a prefill"]


def capture_computing(compute: Callable[[], Tensor]) -> CudaGraph:
    """Compute, as a capture's warm-up does."""
    return CudaGraph(lambda: None, compute())


def test_captures_leave_no_nan_in_slots(artifacts: Path) -> None:
    family = read_manifest(artifacts).family
    decoder = load_decoder(artifacts, family, "float32", "cpu", 400)
    engine = GraphEngine(decoder, 1, capture_computing)
    memories = [engine.cache.self_attention]
    if engine.cache.prefixes is not None:
        memories.append(engine.cache.prefixes.memory)
    assert engine.prefills.num_captured == 4
    assert all(bool(memory._memory.isfinite().all()) for memory in memories)


@torch.inference_mode()
def test_captured_prefills_equal_eager_ones(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    decoder = load_decoder(artifacts, manifest.family, "float32", "cpu", 400)
    generator = torch.Generator().manual_seed(0)
    requests: list[SequenceRequest] = []
    for text in ("abc", "what is it", "a"):
        features = torch.randn(16, manifest.hidden_size, generator=generator)
        prompt_ids = decoder.text.prompt_ids([(text, False)])
        requests.append(SequenceRequest(features, prompt_ids, 4))
    requests[1] = replace(requests[1], num_beams=3)
    engine = graph_engine(decoder, 8)
    eager = EagerEngine(decoder, 8)
    assert engine.prefills.hold(requests)
    expected = eager.prefill(requests, 0)
    torch.testing.assert_close(engine.prefill(requests, 0).logits, expected, rtol=1e-4, atol=1e-4)
    num_rows = sum(request.num_beams for request in requests)
    tokens = [[5]] * num_rows
    assert engine.cache.shared_prefixes(num_rows) == eager.cache.shared_prefixes(num_rows)
    logits = engine.decode(tokens).logits
    torch.testing.assert_close(logits, eager.decode(tokens), rtol=1e-4, atol=1e-4)
