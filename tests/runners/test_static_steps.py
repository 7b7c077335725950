"""Steps of fixed shapes, recorded by a fake that computes eagerly, as a graph needs a card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.decoder.batch import Decoder, generate_all
from runners.decoder.cuda_graphs import Bucket, Recorded, StaticSteps
from tests.support.decoder_cases import make_case
from tests.support.export_cli import ModelStore

MAX_SHAPES = 12


def record_eagerly(compute: Callable[[], Tensor]) -> Recorded:
    logits = compute().clone()
    return Recorded(lambda: logits.copy_(compute()), logits)


class StaticDecoder:
    """A decoder whose caches have static steps, as they have on a card; notes their recordings."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.num_recorded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def new_cache(self, num_slots: int) -> Any:
        cache = self._decoder.new_cache(num_slots)
        cache.static_steps = self._decoder.static_steps(cache, self._record)
        return cache

    def _record(self, compute: Callable[[], Tensor]) -> Recorded:
        self.num_recorded += 1
        return record_eagerly(compute)


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
    assert Bucket.of(num_rows, lengths, num_slots=12, num_places=320) == expected


def test_a_shape_is_recorded_once_and_replayed_with_the_tokens_of_each_call() -> None:
    shapes: list[tuple[int, ...]] = []

    def record(compute: Callable[[], Tensor]) -> Recorded:
        shapes.append(tuple(compute().shape))
        return record_eagerly(compute)

    def step(token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return token_ids[:, None] * torch.ones(lengths[0])

    steps = StaticSteps(step, num_slots=8, num_places=256, device=torch.device("cpu"), record=record)
    for token_ids in ([5, 6, 7], [1, 2, 3, 4], [9, 8, 7]):
        logits = steps.logits(torch.tensor(token_ids), (60,))
        assert logits[:, 0].tolist() == token_ids
    assert shapes == [(4, 64)]


@pytest.mark.parametrize("name", ["florence-2-mini", "paligemma-mini", "random paligemma2"])
def test_answers_are_those_of_steps_of_their_own_shapes(name: str, exported: ModelStore, tmp_path: Path) -> None:
    case = make_case(name, exported, tmp_path)
    requests = [case.request(index, 3 + 3 * index, 3 if index % 4 == 0 else 1) for index in range(9)]
    static: Any = StaticDecoder(case.decoder)
    decoder: Decoder[Any] = static
    expected = [sequence.token_ids for sequence in generate_all(case.decoder, requests)]
    assert [sequence.token_ids for sequence in generate_all(decoder, requests)] == expected
    assert 1 < static.num_recorded <= MAX_SHAPES
