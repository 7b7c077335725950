"""Decode steps of fixed shapes, captured by a fake that computes eagerly: real CUDA graphs need a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.artifacts.manifest import read_manifest
from runners.decoder.batch import Decoder, generate_all
from runners.decoder.cuda_graphs import Capture, CudaGraph, CudaGraphs, Step, buckets
from runners.models.load import load_decoder
from tests.support.decoder_cases import make_case
from tests.support.export_cli import ModelStore

MAX_GRAPHS = 25


def capture_eagerly(compute: Callable[[], Tensor]) -> CudaGraph:
    logits = compute().clone()
    return CudaGraph(lambda: logits.copy_(compute()), logits)


class GraphDecoder:
    """A decoder whose caches have graphs, as on a GPU; counts their captures."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.num_captured = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def new_cache(self, num_slots: int) -> Any:
        cache = self._decoder.new_cache(num_slots)
        cache.graphs = self._decoder.cuda_graphs(cache, num_slots, self._capture)
        return cache

    def _capture(self, compute: Callable[[], Tensor]) -> CudaGraph:
        self.num_captured += 1
        return capture_eagerly(compute)


def doubling(token_ids: Tensor, length: int) -> Tensor:
    return token_ids[:, None] * 2 * torch.ones(length)


def graphs_of(step: Step, capture: Capture = capture_eagerly) -> CudaGraphs:
    graphs = CudaGraphs(step, num_slots=6, num_positions=300, device=torch.device("cpu"), capture=capture)
    graphs.capture_all()
    return graphs


def test_buckets_are_powers_of_two_of_rows_and_powers_of_four_of_positions_largest_first() -> None:
    shapes = [(bucket.num_rows, bucket.length) for bucket in buckets(6, 300)]
    assert shapes == [(rows, length) for rows in (6, 4, 2, 1) for length in (300, 256, 64)]
    assert [bucket.num_rows for bucket in buckets(16, 64)] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize(("num_rows", "length", "expected"), [(1, 1, 64), (3, 64, 64), (3, 65, 256), (6, 257, 300)])
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(num_rows: int, length: int, expected: int) -> None:
    logits = graphs_of(doubling).logits(torch.arange(num_rows), length)
    assert logits.shape == (num_rows, expected)
    assert logits[:, 0].tolist() == [2 * token_id for token_id in range(num_rows)]


def test_every_bucket_is_captured_once_before_the_first_step() -> None:
    captured: list[tuple[int, ...]] = []

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        captured.append(tuple(compute().shape))
        return capture_eagerly(compute)

    graphs = graphs_of(doubling, capture)
    before = list(captured)
    for token_ids in ([5, 6, 7], [1, 2, 3, 4], [9, 8, 7]):
        assert graphs.logits(torch.tensor(token_ids), 60)[:, 0].tolist() == [2 * token_id for token_id in token_ids]
    assert captured == before == [(bucket.num_rows, bucket.length) for bucket in buckets(6, 300)]


def test_after_a_failed_capture_steps_run_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_compute: Callable[[], Tensor]) -> CudaGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    logits = graphs_of(doubling, capture).logits(torch.tensor([3, 4]), 7)
    assert logits.tolist() == [[6.0] * 7, [8.0] * 7]
    assert [record.message for record in caplog.records] == ["no CUDA graph for 6 rows of 300 positions"]


@pytest.mark.parametrize("name", ["florence-2-mini", "paligemma-mini", "random paligemma2"])
def test_answers_equal_those_of_eager_steps(name: str, exported: ModelStore, tmp_path: Path) -> None:
    case = make_case(name, exported, tmp_path)
    requests = [case.request(index, 3 + 3 * index, 3 if index % 4 == 0 else 1) for index in range(9)]
    graphed: Any = GraphDecoder(case.decoder)
    decoder: Decoder[Any] = graphed
    expected = [sequence.token_ids for sequence in generate_all(case.decoder, requests)]
    assert [sequence.token_ids for sequence in generate_all(decoder, requests)] == expected
    assert 1 < graphed.num_captured <= MAX_GRAPHS


def test_a_recorded_step_reads_no_value_and_stays_on_its_device(artifacts: Path) -> None:
    """On `meta`, tensors have no values: a step that reads one, or mixes devices, fails."""
    decoder: Any = load_decoder(artifacts, read_manifest(artifacts).family, "float32", "meta")
    recorded: list[Tensor] = []

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        recorded.append(compute())
        return CudaGraph(lambda: None, recorded[-1])

    decoder.cuda_graphs(decoder.new_cache(4), 4, capture)
    assert {logits.device.type for logits in recorded} == {"meta"}
    assert [len(logits) for logits in recorded] == sorted([1, 2, 4] * (len(recorded) // 3), reverse=True)
