"""Decode steps of fixed shapes, captured by fakes: real CUDA graphs need a GPU.

The fake computes eagerly, so that answers can be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from runners.cuda_graphs.buckets import (
    Bucket,
    buckets,
    prefix_lengths,
    prompt_lengths,
    row_counts,
    shared_prefixes,
)
from runners.cuda_graphs.choice import KINDS
from runners.cuda_graphs.graphs import Capture, CudaGraph, CudaGraphs, Step
from runners.decoder.batch import generate_all
from runners.decoder.engines import new_engine
from runners.decoder.sequences import SequenceRequest
from runners.tokens.conditions import RowConditions
from runners.tokens.token_choice import choose_tokens
from tests.support.decoder_cases import Case, make_case
from tests.support.device_traffic import capture_eagerly, graph_engine
from tests.support.export_cli import ModelStore

SIZE = 40


def doubling(token_ids: Tensor, shape: Bucket) -> Tensor:
    """Return logits that are highest at twice the token, and tell the length at position 1."""
    logits = torch.zeros(len(token_ids), SIZE)
    logits[torch.arange(len(token_ids)), 2 * token_ids % SIZE] = 1000.0
    logits[:, 1] = shape.length
    return logits


def graphs_of(step: Step = doubling, capture: Capture = capture_eagerly) -> CudaGraphs:
    graphs = CudaGraphs(
        step, num_slots=6, num_positions=300, device=torch.device("cpu"), capture=capture
    )
    graphs.capture_all(buckets(6, 300), [SIZE - 1])
    return graphs


def logits_of(graphs: CudaGraphs, token_ids: Sequence[int], length: int, shared: int = 0) -> Tensor:
    """Return the logits of a pass over tokens of the host."""
    graphs.load(token_ids)
    return graphs.run(Bucket(len(token_ids), length, shared))


def chosen(graphs: CudaGraphs, logits: Tensor) -> list[int]:
    """Return the greedy choice of each row."""
    rows = [[row] for row in range(len(logits))]
    found = graphs.choose(logits, [RowConditions()] * len(rows), rows).choices
    return [own[0].token_id for own in found]


def test_buckets_are_powers_of_two_of_rows_and_powers_of_four_of_positions_largest_first() -> None:
    shapes = [(bucket.num_rows, bucket.length) for bucket in buckets(6, 300)]
    assert shapes == list(product((6, 4, 2, 1), (300, 256, 64)))
    assert [bucket.num_rows for bucket in buckets(16, 64)] == [16, 8, 4, 2, 1]


def test_buckets_have_room_for_what_every_sequence_takes() -> None:
    assert [bucket.length for bucket in buckets(1, 1280, min_length=256)] == [1280, 512, 320]
    assert [bucket.length for bucket in buckets(1, 300, min_length=256)] == [300]


def test_prompts_are_padded_to_16_positions_and_steps_read_no_more_of_usual_ones() -> None:
    assert prompt_lengths(577, 1024) == [592, 608, 624, 640]
    assert prompt_lengths(256, 290) == [272, 288]
    assert prefix_lengths(577, 1024) == [640, 1024]
    assert prefix_lengths(577, 590) == [590]
    graphs = [Bucket(2, 64, 0, each) for each in prefix_lengths(577, 1024)]
    assert [each.holds(Bucket(2, 9, 0, 641)) for each in graphs] == [False, True]


def test_steps_of_beams_read_as_few_prefixes_as_the_checkpoints_beams_share() -> None:
    assert shared_prefixes(64, 3) == [(64, 64), (64, 22), (32, 11), (16, 6), (8, 3), (4, 2)]
    assert shared_prefixes(64, 1) == [(64, 64)]
    shapes: list[tuple[int, int]] = []

    def step(token_ids: Tensor, shape: Bucket) -> Tensor:
        shapes.append((len(token_ids), shape.num_prefixes))
        return doubling(token_ids, shape)

    graphs = CudaGraphs(
        step, num_slots=6, num_positions=64, device=torch.device("cpu"), capture=capture_eagerly
    )
    graphs.capture_all(buckets(6, 64, shared=shared_prefixes(6, 3)), [SIZE - 1])
    for num_rows, num_prefixes, expected in [
        (6, 2, (6, 2)),
        (4, 2, (4, 2)),
        (4, 3, (6, 6)),
        (6, 0, (6, 0)),
        (3, 1, (4, 2)),
    ]:
        logits_of(graphs, range(num_rows), 8, num_prefixes)
        assert shapes[-1] == expected


def test_of_two_buckets_that_fit_the_one_with_fewer_rows_is_run() -> None:
    shapes: list[tuple[int, int]] = []

    def step(token_ids: Tensor, shape: Bucket) -> Tensor:
        shapes.append((len(token_ids), shape.num_prefixes))
        return doubling(token_ids, shape)

    graphs = CudaGraphs(
        step, num_slots=6, num_positions=64, device=torch.device("cpu"), capture=capture_eagerly
    )
    graphs.capture_all([Bucket(6, 64, 2), Bucket(4, 64, 3)], [SIZE - 1])
    logits_of(graphs, range(4), 8, shared=2)
    assert shapes[-1] == (4, 3)


@pytest.mark.parametrize(
    ("num_rows", "length", "expected"), [(1, 1, 64), (3, 64, 64), (3, 65, 256), (6, 257, 300)]
)
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(
    num_rows: int, length: int, expected: int
) -> None:
    token_ids = torch.arange(2, 2 + num_rows)
    logits = logits_of(graphs_of(), token_ids.tolist(), length)
    assert logits[:, 1].tolist() == [expected] * num_rows
    assert logits.argmax(-1).tolist() == (2 * token_ids).tolist()


def test_every_step_and_choice_is_captured_once_before_the_first_step() -> None:
    captured: list[int] = []

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        captured.append(len(compute()))
        return capture_eagerly(compute)

    graphs = graphs_of(capture=capture)
    counts = row_counts(6)
    times = (3, len(KINDS), len(KINDS))  # passes, choices of steps and of prefills
    assert captured == np.concatenate([np.repeat(counts, each) for each in times]).tolist()
    for token_ids in ([5, 6, 7], [1, 2, 3, 4], [9, 8, 7]):
        logits = logits_of(graphs, token_ids, 60)
        assert logits.argmax(-1).tolist() == [2 * token_id for token_id in token_ids]
        chosen(graphs, logits)
    assert len(captured) == graphs.num_captured


def test_chosen_tokens_are_the_inputs_of_the_next_step_unless_others_are_loaded() -> None:
    graphs = graphs_of()
    assert chosen(graphs, logits_of(graphs, [3, 4], 8)) == [6, 8]
    assert graphs.run(Bucket(2, 8)).argmax(-1).tolist() == [12, 16]
    assert logits_of(graphs, [6, 5], 8).argmax(-1).tolist() == [12, 10]
    assert graphs.run(Bucket(1, 8)).argmax(-1).tolist() == [12]


@pytest.mark.parametrize(
    "conditions",
    [
        RowConditions(banned=tuple(range(17))),
        RowConditions(beam_score=-1.0, num_candidates=18),
        RowConditions(temperature=1.0, top_p=0.9, uniform=0.7),
    ],
    ids=["many banned", "many candidates", "wide nucleus"],
)
def test_what_a_captured_choice_has_no_room_for_is_chosen_eagerly(
    conditions: RowConditions,
) -> None:
    def flat(token_ids: Tensor, _shape: Bucket) -> Tensor:
        return torch.linspace(0, 1, 3000).expand(len(token_ids), -1)

    graphs = graphs_of(flat)
    logits = logits_of(graphs, [1, 2], 8)
    expected = choose_tokens(logits, [conditions, RowConditions()], [[0], [1]])
    found = graphs.choose(logits, [conditions, RowConditions()], [[0], [1]], None, lambda: "ahead")
    assert found.choices == expected
    # only a wide nucleus is known after the choice: the next pass reads another token
    is_late = conditions.temperature > 0
    assert (found.ahead, list(found.redrawn)) == (("ahead", [0]) if is_late else (None, []))


def test_tokens_are_chosen_from_the_logits_of_an_eager_step_too() -> None:
    """A step with adapters in its batch is not captured; its choice is."""
    graphs = graphs_of()
    logits_of(graphs, [3, 4, 5], 8)
    assert chosen(graphs, graphs.store(doubling(torch.tensor([7, 8]), Bucket(2, 9)))) == [14, 16]


def test_after_a_failed_capture_steps_run_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_compute: Callable[[], Tensor]) -> CudaGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = graphs_of(capture=capture)
    logits = logits_of(graphs, [3, 4], 7)
    assert logits.equal(doubling(torch.tensor([3, 4]), Bucket(2, 7)))
    assert chosen(graphs, logits) == [6, 8]
    assert [record.message for record in caplog.records] == [
        "no CUDA graph for a step of 6 rows of 300 positions"
    ]


def test_after_a_failed_capture_of_a_choice_tokens_are_chosen_eagerly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        if compute().shape[1] != SIZE:
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture_eagerly(compute)

    graphs = graphs_of(capture=capture)
    assert chosen(graphs, logits_of(graphs, [3, 4], 7)) == [6, 8]
    assert logits_of(graphs, [6, 8], 7).argmax(-1).tolist() == [12, 16]
    assert [record.message for record in caplog.records] == [
        "no CUDA graph for the choice of 6 tokens"
    ]


def mixed_requests(case: Case) -> list[SequenceRequest]:
    """Return greedy and sampled requests and ones with beams, with and without a constraint, of
    different lengths.
    """
    words = case.decoder.text.constraints.get("start: /[a-z <>_0-9]{0,60}/")
    requests = []
    for index in range(12):
        request = case.request(index, 3 + 3 * index, 3 if index % 4 == 0 else 1)
        if index % 4 == 1:
            request = replace(
                request, temperature=0.9, top_p=0.8 if index % 8 == 1 else 1.0, seed=index
            )
        requests.append(replace(request, constraint=words if index % 3 == 0 else None))
    return requests


@pytest.mark.parametrize(
    "name", ["florence-2-mini", "florence-2-mini released rules", "random paligemma2"]
)
def test_answers_equal_those_of_eager_steps(
    name: str, exported: ModelStore, tmp_path: Path
) -> None:
    case = make_case(name, exported, tmp_path)
    expected = generate_all(case.decoder, mixed_requests(case))
    written = generate_all(case.decoder, mixed_requests(case), graph_engine)
    assert [each.token_ids for each in written] == [each.token_ids for each in expected]
    for found, sequence in zip(written, expected, strict=True):
        assert found.logprobs == pytest.approx(sequence.logprobs, abs=1e-4)


@pytest.mark.parametrize(("is_graphed", "num_beams"), [(False, 4), (True, 4), (True, 9)])
def test_beams_continue_where_a_slot_before_theirs_is_freed(
    exported: ModelStore, tmp_path: Path, is_graphed: bool, num_beams: int
) -> None:
    """The last slot moves into the freed one, after the beams that its row has just chosen are in
    it.

    Captured steps have no room for nine beams: they run eagerly.
    """
    case = make_case("random florence2", exported, tmp_path)
    engine = graph_engine if is_graphed else new_engine
    requests = [
        *(case.request(index, 2 + index) for index in range(14)),
        case.request(5, 20, num_beams),
    ]
    together = [sequence.token_ids for sequence in generate_all(case.decoder, requests, engine)]
    alone = [generate_all(case.decoder, [request])[0].token_ids for request in requests]
    assert together == alone
