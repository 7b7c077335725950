"""Steps, choices and prefills of fixed shapes, captured by fakes that compute eagerly: real CUDA
graphs need a GPU.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from runners.adapters.low_rank import Adapters
from runners.decoder.batch import LiveBatch, generate_all, start_sequence
from runners.decoder.captured_passes import (
    Capture,
    CapturedPrefills,
    CapturedSteps,
    CudaGraph,
    FixedPrefill,
    Step,
    StepShape,
    prefill_shapes,
    prompt_lengths,
    row_counts,
    step_shapes,
)
from runners.decoder.engines import EagerEngine, GraphEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.tokens.choice import CAPTURED_KINDS, RowConditions, choose_tokens
from tests.support.decoder_cases import make_case
from tests.support.export_cli import ModelStore
from tests.support.fake_decoder import FAKE_SHAPE, HIDDEN_SIZE, FakeDecoder
from tests.support.passes import capture_eagerly, graph_engine, make_endless
from wire.artifacts.adapter_folder import DOWN, UP
from wire.artifacts.manifest import read_manifest

SIZE = 40


def doubling(token_ids: Tensor, shape: StepShape) -> Tensor:
    """Return logits that are highest at twice the token, and tell the length at position 1."""
    logits = torch.zeros(len(token_ids), SIZE)
    logits[torch.arange(len(token_ids)), 2 * token_ids % SIZE] = 1000.0
    logits[:, 1] = shape.length
    return logits


def graphs_of(step: Step = doubling, capture: Capture = capture_eagerly) -> CapturedSteps:
    shapes = step_shapes(replace(FAKE_SHAPE, num_positions=300), 6)
    graphs = CapturedSteps(step, shapes, 6, torch.device("cpu"), capture)
    graphs.capture_all([SIZE - 1])
    return graphs


def logits_of(
    graphs: CapturedSteps, token_ids: Sequence[int], length: int, shared: int = 0
) -> Tensor:
    """Return the logits of a pass over tokens of the host."""
    graphs.load(token_ids)
    return graphs.run(StepShape(len(token_ids), length, shared))


def greedy(graphs: CapturedSteps, logits: Tensor) -> list[int]:
    """Return the greedy choice of each row."""
    rows = [[row] for row in range(len(logits))]
    choices = graphs.choose(logits, [RowConditions()] * len(rows), rows).choices
    return [choice.token_id for (choice,) in choices]


def test_steps_have_few_shapes_the_largest_first() -> None:
    shape = replace(FAKE_SHAPE, num_positions=300)
    shapes = [(step.num_rows, step.length) for step in step_shapes(shape, 6)]
    assert shapes == list(product((1, 2, 4, 6), (64, 256, 300)))
    assert row_counts(16) == [1, 2, 4, 8, 16]
    image = replace(shape, num_positions=1280, num_image_tokens=256)
    assert [step.length for step in step_shapes(image, 1)] == [320, 512, 1280]
    assert [step.length for step in step_shapes(replace(image, num_positions=300), 1)] == [300]


@pytest.mark.parametrize(("num_positions", "lengths"), [(1024, [640, 1024]), (590, [590])])
def test_steps_read_no_more_of_usual_prompts(num_positions: int, lengths: list[int]) -> None:
    assert prompt_lengths(577, 1024) == [592, 608, 624, 640]
    assert prompt_lengths(256, 290) == [272, 288]
    shape = replace(
        FAKE_SHAPE, has_prefixes=True, num_image_tokens=577, num_positions=num_positions
    )
    assert sorted({step.prefix_length for step in step_shapes(shape, 2)}) == lengths


def test_steps_of_beams_read_few_prefixes() -> None:
    shape = replace(FAKE_SHAPE, has_prefixes=True, num_positions=300, num_image_tokens=7)
    shapes = step_shapes(shape, 6, num_beams=3, has_adapters=True)
    rows = dict.fromkeys((shape.num_rows, shape.num_prefixes) for shape in shapes)
    assert list(rows) == [(1, 0), (2, 0), (4, 0), (4, 2), (6, 0), (6, 2), (6, 6)]
    cases = [(6, 2, (6, 2)), (4, 2, (4, 2)), (4, 3, (6, 6)), (6, 0, (6, 0)), (3, 1, (4, 2))]
    for num_rows, num_prefixes, expected in cases:
        for prefix_length, has_adapters in [(0, False), (80, True), (81, True)]:
            step = StepShape(num_rows, 9, num_prefixes, prefix_length, has_adapters)
            captured = next(shape for shape in shapes if shape.holds(step))
            assert (captured.num_rows, captured.num_prefixes) == expected
            assert captured.prefix_length >= prefix_length
            assert captured.has_adapters == has_adapters


@pytest.mark.parametrize(
    ("num_rows", "length", "expected"), [(1, 1, 64), (3, 64, 64), (3, 65, 256), (6, 257, 300)]
)
def test_a_step_runs_in_the_smallest_shape(num_rows: int, length: int, expected: int) -> None:
    token_ids = torch.arange(2, 2 + num_rows)
    logits = logits_of(graphs_of(), token_ids.tolist(), length)
    assert logits[:, 1].tolist() == [expected] * num_rows
    assert logits.argmax(-1).tolist() == (2 * token_ids).tolist()


def test_everything_is_captured_before_the_first_step() -> None:
    captured: list[int] = []

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        captured.append(len(compute()))
        return capture_eagerly(compute)

    graphs = graphs_of(capture=capture)
    counts = row_counts(6)[::-1]
    times = (3, len(CAPTURED_KINDS), len(CAPTURED_KINDS))  # passes, choices of steps, of prefills
    assert captured == np.concatenate([np.repeat(counts, num) for num in times]).tolist()
    for token_ids in ([5, 6, 7], [1, 2, 3, 4], [9, 8, 7]):
        logits = logits_of(graphs, token_ids, 60)
        assert logits.argmax(-1).tolist() == [2 * token_id for token_id in token_ids]
        greedy(graphs, logits)
    assert len(captured) == len(graphs._steps) + len(graphs._choices)


@pytest.mark.parametrize(
    "conditions",
    [
        RowConditions(banned=tuple(range(17))),
        RowConditions(beam_score=-1.0, num_candidates=18),
        RowConditions(temperature=1.0, top_p=0.9, uniform=0.7),
    ],
    ids=["many banned", "many candidates", "wide nucleus"],
)
def test_conditions_without_room_are_chosen_eagerly(conditions: RowConditions) -> None:
    def flat(token_ids: Tensor, _shape: StepShape) -> Tensor:
        return torch.linspace(0, 1, 3000).expand(len(token_ids), -1)

    graphs = graphs_of(flat)
    logits = logits_of(graphs, [1, 2], 8)
    ahead = torch.zeros(2)
    expected = choose_tokens(logits, [conditions, RowConditions()], [[0], [1]])
    result = graphs.choose(logits, [conditions, RowConditions()], [[0], [1]], None, lambda: ahead)
    assert result.choices == expected
    # only a wide nucleus is known after the choice: the next pass reads another token
    is_late = conditions.temperature > 0
    assert (result.ahead, list(result.redrawn)) == ((ahead, [0]) if is_late else (None, []))


@pytest.mark.parametrize(
    ("fails", "name"),
    [(lambda _: True, "a step of 6 rows of 300 positions"),
     (lambda output: output.shape[1] != SIZE, "the choice of 6 tokens")],
    ids=["step", "choice"],
)  # fmt: skip
def test_what_failed_to_be_captured_runs_eagerly(
    caplog: pytest.LogCaptureFixture, fails: Callable[[Tensor], bool], name: str
) -> None:
    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        if fails(compute()):
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture_eagerly(compute)

    graphs = graphs_of(capture=capture)
    logits = logits_of(graphs, [3, 4], 7)
    assert logits.argmax(-1).tolist() == [6, 8]
    assert greedy(graphs, logits) == [6, 8]
    assert logits_of(graphs, [6, 8], 7).argmax(-1).tolist() == [12, 16]
    assert [record.message for record in caplog.records] == [f"no CUDA graph for {name}"]


@pytest.mark.parametrize("num_beams", [4, 9])
def test_beams_continue_where_a_slot_before_theirs_is_freed(
    exported: ModelStore, tmp_path: Path, num_beams: int
) -> None:
    """The last slot moves into the freed one, after the beams that its row has just chosen are in
    it. Captured steps have no room for nine beams: they run eagerly.
    """
    case = make_case("random florence2", exported, tmp_path)
    requests = [case.request(index, 2 + index) for index in range(14)]
    requests.append(case.request(5, 20, num_beams))
    together = [one.token_ids for one in generate_all(case.decoder, requests, graph_engine)]
    alone = [generate_all(case.decoder, [request])[0].token_ids for request in requests]
    assert together == alone


SHAPE = replace(FAKE_SHAPE, num_positions=300, num_image_tokens=7)
REQUEST = SequenceRequest(torch.ones(7, 2), (5, 6), max_new_tokens=4)


class Computed:
    """Captured prefills whose passes are noted."""

    def __init__(self, capture: Capture = capture_eagerly) -> None:
        self.ran: list[FixedPrefill] = []
        shapes = prefill_shapes(SHAPE, num_slots=20, has_adapters=True)
        self.prefills = CapturedPrefills(self._compute, shapes, hidden_size=2, max_beams=2)
        self.prefills.capture_all(capture, torch.device("cpu"))

    def _compute(self, inputs: FixedPrefill) -> Tensor:
        self.ran.append(deepcopy(inputs))
        return torch.zeros(1)


def test_shapes_are_limited_by_slots_and_positions() -> None:
    shapes = prefill_shapes(SHAPE, num_slots=5)
    largest = [(shape.num_sequences, shape.length) for shape in shapes[:3]]
    assert (largest, len(shapes)) == ([(4, 80), (4, 64), (4, 48)], 15)
    wide = prefill_shapes(replace(SHAPE, num_positions=2000, num_image_tokens=1024), 64)
    assert {shape.num_sequences for shape in wide} == {1, 2, 4}


def test_sequences_run_in_parts_without_padded_rows() -> None:
    computed = Computed()
    requests = [replace(REQUEST, prompt_ids=(5,) * (1 + index)) for index in range(11)]
    places = [0] * 4 + [3] + [0] * 6
    assert computed.prefills.hold(requests, places)
    computed.prefills.run(requests, [[(slot, 0, slot, 0, 9)] for slot in range(11)], places)
    assert [inputs.rows.tolist() for inputs in computed.ran] == [
        [0, 1, 2, 3, 5, 6, 7, 8],
        [9, 10],
        [4],
    ]
    adapter_places = [inputs.adapter_places for inputs in computed.ran]
    assert (adapter_places[:2], adapter_places[2]) == ([None, None], torch.tensor([3]))
    lengths = [inputs.features.shape[1] for inputs in computed.ran]
    assert lengths == [32, 32, 16]  # 18 and 12 tokens


@pytest.mark.parametrize(
    "request_", [replace(REQUEST, prompt_ids=(5,) * 74), replace(REQUEST, num_beams=3)],
    ids=["long", "many beams"],
)  # fmt: skip
def test_other_prefills_are_not_captured(request_: SequenceRequest) -> None:
    prefills = Computed().prefills
    fitting = replace(REQUEST, prompt_ids=(5,) * 73, num_beams=2)
    for place in (0, 1):
        assert prefills.hold([REQUEST, fitting], [0, place])
        assert not prefills.hold([REQUEST, request_], [0, place])


def test_after_a_failed_capture_prefills_are_eager(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_compute: Callable[[], Tensor]) -> CudaGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert not Computed(capture).prefills.hold([REQUEST], [0])
    assert [record.message for record in caplog.records] == ["no CUDA graph for a prefill"]


def test_captures_leave_no_nan_in_slots(artifacts: Path) -> None:
    family = read_manifest(artifacts).family
    decoder = load_decoder(artifacts, family, "float32", "cpu", 400)
    engine = GraphEngine(decoder, 1, lambda compute: CudaGraph(compute, compute()))
    memories = [engine.cache.self_attention]
    if engine.cache.prefixes is not None:
        memories.append(engine.cache.prefixes.memory)
    assert len(engine.prefills._graphs) == 4
    assert all(bool(memory._memory.isfinite().all()) for memory in memories)


def random_tensors(adapters: Adapters, generator: torch.Generator) -> dict[str, Tensor]:
    """Return an adapter of rank 2 for all layers."""
    tensors: dict[str, Tensor] = {}
    for layer in adapters._layers:
        for name, size in zip(layer.layers, layer.sizes, strict=True):
            tensors[name + DOWN] = torch.randn(2, layer.width, generator=generator) / 10
            tensors[name + UP] = torch.randn(size, 2, generator=generator) / 10
    return tensors


@torch.inference_mode()
def test_captured_prefills_equal_eager_ones(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    generator = torch.Generator().manual_seed(0)
    adapters = Adapters()
    decoder = load_decoder(artifacts, manifest.family, "float32", "cpu", 400, adapters=adapters)
    adapters.open_pool(4, 10**9)
    adapters.add("other", random_tensors(adapters, generator))
    adapters.add("tuned", random_tensors(adapters, generator))
    adapters.add("without a place", random_tensors(adapters, generator))
    requests: list[SequenceRequest] = []
    for text in ("abc", "what is it", "a"):
        features = torch.randn(16, manifest.hidden_size, generator=generator)
        prompt_ids = decoder.text.prompt_ids([(text, False)])
        requests.append(SequenceRequest(features, prompt_ids, 4))
    requests[1] = replace(requests[1], num_beams=3)
    requests[2] = replace(requests[2], adapter="tuned")
    engine = graph_engine(decoder, 8)
    eager = EagerEngine(decoder, 8)
    assert all(map(engine.captures, requests))
    assert not engine.captures(replace(requests[0], adapter="without a place"))
    base = eager.prefill([replace(requests[2], adapter=None)], 0)
    expected = eager.prefill(requests, 0)
    assert not torch.allclose(expected[2], base[0], atol=0.1)
    engine._eager.prefill = None  # type: ignore[assignment]  # it is replayed
    torch.testing.assert_close(engine.prefill(requests, 0), expected, rtol=1e-4, atol=1e-4)
    num_rows = sum(request.num_beams for request in requests)
    tokens = [[5]] * num_rows
    assert engine.cache.shared_prefixes(num_rows) == eager.cache.shared_prefixes(num_rows)
    logits = engine.decode(tokens)
    torch.testing.assert_close(logits, eager.decode(tokens), rtol=1e-4, atol=1e-4)


# Functions of Python and C that a step of one row calls on the host, and for each further row.
MAX_CALLS = 160
MAX_CALLS_OF_ROW = 29


def num_calls_of_step(num_rows: int, num_positions: int) -> int:
    decoder = FakeDecoder(shape=replace(FAKE_SHAPE, num_positions=num_positions))
    make_endless(decoder)

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        return CudaGraph(lambda: None, compute().zero_())  # every token is 0, certainly

    def engine(decoder: Decoder, num_slots: int) -> GraphEngine:
        return GraphEngine(decoder, num_slots, capture)

    batch = LiveBatch(decoder, 64, engine)
    request = SequenceRequest(torch.zeros(2, HIDDEN_SIZE), (5, 6), max_new_tokens=20)
    batch.admit([start_sequence(request, decoder.rules) for _ in range(num_rows)])
    batch.step()
    calls: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
    try:
        batch.step()
    finally:
        sys.setprofile(None)
    assert [sequence.num_tokens for sequence in batch.slots.of] == [3] * num_rows
    return calls["call"] + calls["c_call"]


@pytest.mark.parametrize("num_rows", [1, 64])
def test_a_step_calls_few_functions(num_rows: int) -> None:
    """However many shapes are captured: a GPU computes a step in less than a millisecond."""
    num_calls = num_calls_of_step(num_rows, 64)
    assert num_calls <= MAX_CALLS + MAX_CALLS_OF_ROW * (num_rows - 1)
    assert num_calls_of_step(num_rows, 4096) == num_calls
