"""Decode steps of fixed shapes, captured by a fake that computes eagerly: real CUDA graphs need a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.decoder.batch import Decoder, generate_all
from runners.decoder.cuda_graphs import Bucket, CudaGraph, CudaGraphs
from tests.support.decoder_cases import make_case
from tests.support.export_cli import ModelStore

MAX_SHAPES = 12


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
        cache.graphs = self._decoder.cuda_graphs(cache, self._capture)
        return cache

    def _capture(self, compute: Callable[[], Tensor]) -> CudaGraph:
        self.num_captured += 1
        return capture_eagerly(compute)


@pytest.mark.parametrize(
    ("num_rows", "lengths", "expected"),
    [
        (1, (1, 160), Bucket(1, (64, 192))),
        (3, (64, 64), Bucket(4, (64, 64))),
        (4, (65, 320), Bucket(4, (128, 320))),
        (9, (300,), Bucket(12, (320,))),
        (12, (320,), Bucket(12, (320,))),
    ],
)
def test_a_step_is_rounded_up_to_its_bucket(num_rows: int, lengths: tuple[int, ...], expected: Bucket) -> None:
    assert Bucket.of(num_rows, lengths, num_slots=12, num_positions=320) == expected


def test_a_shape_is_captured_once_and_replayed_with_the_tokens_of_each_call() -> None:
    shapes: list[tuple[int, ...]] = []

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        shapes.append(tuple(compute().shape))
        return capture_eagerly(compute)

    def step(token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return token_ids[:, None] * torch.ones(lengths[0])

    graphs = CudaGraphs(step, num_slots=8, num_positions=256, device=torch.device("cpu"), capture=capture)
    for token_ids in ([5, 6, 7], [1, 2, 3, 4], [9, 8, 7]):
        logits = graphs.logits(torch.tensor(token_ids), (60,))
        assert logits[:, 0].tolist() == token_ids
    assert shapes == [(4, 64)]


@pytest.mark.parametrize("name", ["florence-2-mini", "paligemma-mini", "random paligemma2"])
def test_answers_equal_those_of_eager_steps(name: str, exported: ModelStore, tmp_path: Path) -> None:
    case = make_case(name, exported, tmp_path)
    requests = [case.request(index, 3 + 3 * index, 3 if index % 4 == 0 else 1) for index in range(9)]
    graphed: Any = GraphDecoder(case.decoder)
    decoder: Decoder[Any] = graphed
    expected = [sequence.token_ids for sequence in generate_all(case.decoder, requests)]
    assert [sequence.token_ids for sequence in generate_all(decoder, requests)] == expected
    assert 1 < graphed.num_captured <= MAX_SHAPES
