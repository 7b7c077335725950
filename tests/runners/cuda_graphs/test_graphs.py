"""Decode steps of fixed shapes, captured by fakes: real CUDA graphs need a GPU.

One fake computes eagerly, so that answers can be compared; the other has no values (tests/support/device_traffic.py),
and counts what a step does outside of its graphs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.artifacts.manifest import read_manifest
from runners.cuda_graphs.choice import KINDS
from runners.cuda_graphs.graphs import Capture, CudaGraph, CudaGraphs, Step, buckets, row_counts, shared_prefixes
from runners.decoder.batch import LiveBatch, generate_all, start_sequence
from runners.decoder.beams import BeamSequence
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.tokens.constraints import Constraint
from runners.tokens.token_choice import RowConditions, choose_tokens
from tests.support.decoder_cases import Case, make_case
from tests.support.device_traffic import DeviceTraffic, GraphDecoder, capture_eagerly, device_traffic
from tests.support.export_cli import ModelStore

SIZE = 40


def doubling(token_ids: Tensor, length: int, _num_prefixes: int = 0) -> Tensor:
    """Return logits that are highest at twice the token, and tell the length at position 1."""
    logits = torch.zeros(len(token_ids), SIZE)
    logits[torch.arange(len(token_ids)), 2 * token_ids % SIZE] = 1000.0
    logits[:, 1] = length
    return logits


def graphs_of(step: Step = doubling, capture: Capture = capture_eagerly) -> CudaGraphs:
    graphs = CudaGraphs(step, num_slots=6, num_positions=300, device=torch.device("cpu"), capture=capture)
    graphs.capture_all([SIZE - 1])
    return graphs


def test_buckets_are_powers_of_two_of_rows_and_powers_of_four_of_positions_largest_first() -> None:
    shapes = [(bucket.num_rows, bucket.length) for bucket in buckets(6, 300)]
    assert shapes == [(rows, length) for rows in (6, 4, 2, 1) for length in (300, 256, 64)]
    assert [bucket.num_rows for bucket in buckets(16, 64)] == [16, 8, 4, 2, 1]


def test_steps_of_beams_read_as_few_prefixes_as_the_checkpoints_beams_share() -> None:
    assert shared_prefixes(64, 3) == [(64, 64), (64, 22), (32, 11), (16, 6), (8, 3), (4, 2)]
    assert shared_prefixes(64, 1) == [(64, 64)]
    shapes: list[tuple[int, int]] = []

    def step(token_ids: Tensor, length: int, num_prefixes: int) -> Tensor:
        shapes.append((len(token_ids), num_prefixes))
        return doubling(token_ids, length)

    graphs = CudaGraphs(step, num_slots=6, num_positions=64, device=torch.device("cpu"), capture=capture_eagerly)
    graphs.capture_all([SIZE - 1], shared_prefixes(6, 3))
    for num_rows, num_prefixes, expected in [
        (6, 2, (6, 2)),
        (4, 2, (4, 2)),
        (4, 3, (6, 6)),
        (6, 0, (6, 0)),
        (3, 1, (4, 2)),
    ]:
        graphs.logits(torch.arange(num_rows), 8, num_prefixes)
        assert shapes[-1] == expected


@pytest.mark.parametrize(("num_rows", "length", "expected"), [(1, 1, 64), (3, 64, 64), (3, 65, 256), (6, 257, 300)])
def test_a_step_runs_in_the_smallest_bucket_that_holds_it(num_rows: int, length: int, expected: int) -> None:
    token_ids = torch.arange(2, 2 + num_rows)
    logits = graphs_of().logits(token_ids, length)
    assert logits[:, 1].tolist() == [expected] * num_rows
    assert logits.argmax(-1).tolist() == (2 * token_ids).tolist()


def test_every_step_and_choice_is_captured_once_before_the_first_step() -> None:
    captured: list[int] = []

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        captured.append(len(compute()))
        return capture_eagerly(compute)

    graphs = graphs_of(capture=capture)
    counts = row_counts(6)
    assert captured == [*(rows for rows in counts for _ in range(3)), *(rows for rows in counts for _ in KINDS)]
    for token_ids in ([5, 6, 7], [1, 2, 3, 4], [9, 8, 7]):
        logits = graphs.logits(torch.tensor(token_ids), 60)
        assert logits.argmax(-1).tolist() == [2 * token_id for token_id in token_ids]
        graphs.choose(logits, [RowConditions()] * len(token_ids), [[row] for row in range(len(token_ids))])
    assert len(captured) == graphs.num_captured


def test_chosen_tokens_are_the_inputs_of_the_next_step_unless_others_are_loaded() -> None:
    graphs, rows = graphs_of(), [[0], [1]]
    plain = [RowConditions()] * 2
    choices = graphs.choose(graphs.logits(torch.tensor([3, 4]), 8), plain, rows)
    assert [own[0].token_id for own in choices] == [6, 8]
    assert graphs.logits(torch.tensor([6, 8]), 8).argmax(-1).tolist() == [12, 16]
    assert graphs.logits(torch.tensor([6, 5]), 8).argmax(-1).tolist() == [12, 10]
    assert graphs.logits(torch.tensor([6]), 8).argmax(-1).tolist() == [12]
    assert graphs.load([6, 5], [(0, 1), (1, 0), (2, 4)]).tolist() == [[0, 1, 2], [1, 0, 4]]


@pytest.mark.parametrize(
    "conditions",
    [
        RowConditions(banned=tuple(range(17))),
        RowConditions(beam_score=-1.0, num_candidates=18),
        RowConditions(temperature=1.0, top_p=0.9, uniform=0.7),
    ],
    ids=["many banned", "many candidates", "wide nucleus"],
)
def test_what_a_recorded_choice_has_no_room_for_is_chosen_eagerly(conditions: RowConditions) -> None:
    def flat(token_ids: Tensor, _length: int, _num_prefixes: int) -> Tensor:
        return torch.linspace(0, 1, 3000).expand(len(token_ids), -1)

    graphs = graphs_of(flat)
    logits = graphs.logits(torch.tensor([1, 2]), 8)
    expected = choose_tokens(logits, [conditions, RowConditions()], [[0], [1]])
    assert graphs.choose(logits, [conditions, RowConditions()], [[0], [1]]) == expected
    assert graphs.logits(torch.tensor([own[0].token_id for own in expected]), 8).equal(logits)


def test_tokens_are_chosen_from_the_logits_of_an_eager_step_too() -> None:
    """A step with adapters in its batch is not recorded; its choice is."""
    graphs = graphs_of()
    graphs.logits(torch.tensor([3, 4, 5]), 8)
    eager = doubling(torch.tensor([7, 8]), 9)
    assert [own[0].token_id for own in graphs.choose(eager, [RowConditions()] * 2, [[0], [1]])] == [14, 16]


def test_after_a_failed_capture_steps_run_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    def capture(_compute: Callable[[], Tensor]) -> CudaGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = graphs_of(capture=capture)
    logits = graphs.logits(torch.tensor([3, 4]), 7)
    assert logits.equal(doubling(torch.tensor([3, 4]), 7))
    assert [own[0].token_id for own in graphs.choose(logits, [RowConditions()] * 2, [[0], [1]])] == [6, 8]
    assert [record.message for record in caplog.records] == ["no CUDA graph for a step of 6 rows of 300 positions"]


def test_after_a_failed_capture_of_a_choice_tokens_are_chosen_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        if compute().shape[1] != SIZE:
            raise RuntimeError("operation not permitted when stream is capturing")
        return capture_eagerly(compute)

    graphs = graphs_of(capture=capture)
    logits = graphs.logits(torch.tensor([3, 4]), 7)
    assert [own[0].token_id for own in graphs.choose(logits, [RowConditions()] * 2, [[0], [1]])] == [6, 8]
    assert graphs.logits(torch.tensor([6, 8]), 7).argmax(-1).tolist() == [12, 16]
    assert [record.message for record in caplog.records] == ["no CUDA graph for the choice of 6 tokens"]


def mixed_requests(case: Case) -> list[SequenceRequest]:
    """Return greedy and sampled requests and ones with beams, with and without a constraint, of different lengths."""
    words = case.decoder.constraints.get("start: /[a-z <>_0-9]{0,60}/")
    requests = []
    for index in range(12):
        request = case.request(index, 3 + 3 * index, 3 if index % 4 == 0 else 1)
        if index % 4 == 1:
            request = replace(request, temperature=0.9, top_p=0.8 if index % 8 == 1 else 1.0, seed=index)
        requests.append(replace(request, constraint=words if index % 3 == 0 else None))
    return requests


@pytest.mark.parametrize("name", ["florence-2-mini", "florence-2-mini released rules", "random paligemma2"])
def test_answers_equal_those_of_eager_steps(name: str, exported: ModelStore, tmp_path: Path) -> None:
    case = make_case(name, exported, tmp_path)
    graphed: Any = GraphDecoder(case.decoder, capture_eagerly)
    decoder: Decoder[Any] = graphed
    expected = generate_all(case.decoder, mixed_requests(case))
    written = generate_all(decoder, mixed_requests(case))
    assert [each.token_ids for each in written] == [each.token_ids for each in expected]
    for found, sequence in zip(written, expected, strict=True):
        assert found.logprobs == pytest.approx(sequence.logprobs, abs=1e-4)


@pytest.mark.parametrize("is_graphed", [False, True])
def test_beams_continue_where_a_slot_before_theirs_is_freed(
    exported: ModelStore, tmp_path: Path, is_graphed: bool
) -> None:
    """The last slot moves into the freed one, after the beams that its row has just chosen are in it."""
    case = make_case("random florence2", exported, tmp_path)
    decoder: Any = GraphDecoder(case.decoder, capture_eagerly) if is_graphed else case.decoder
    requests = [*(case.request(index, 2 + index) for index in range(14)), case.request(5, 20, num_beams=4)]
    together = [sequence.token_ids for sequence in generate_all(decoder, requests)]
    alone = [generate_all(case.decoder, [request])[0].token_ids for request in requests]
    assert together == alone


@pytest.fixture
def traffic() -> Iterator[DeviceTraffic]:
    with device_traffic() as watched:
        yield watched


def meta_batch(
    artifacts: Path, traffic: DeviceTraffic, num: int, num_steps: int, log: list[str] | None = None, **options: Any
) -> LiveBatch[Any]:
    """Return a batch of `num` sequences on `meta`, whose steps are recorded; their launches are logged."""
    own = load_decoder(artifacts, read_manifest(artifacts).family, "float32", "meta")
    launches = [] if log is None else log

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        output = traffic.record(compute).output
        name = "pass" if output.shape[1] == own.num_tokens else "choice"
        return CudaGraph(lambda: launches.append(name), output)

    decoder: Any = GraphDecoder(own, capture)
    decoder.make_endless()
    features = torch.zeros(16, read_manifest(artifacts).hidden_size, device="meta")
    prompt_ids = decoder.prompt_ids([("abc", False)])
    sequences = [
        start_sequence(SequenceRequest(features, prompt_ids, num_steps + 4, **options), decoder.rules)
        for _ in range(num)
    ]
    batch = LiveBatch(decoder, 3 + sum(sequence.num_rows for sequence in sequences))
    assert decoder.num_captured == decoder.recorded(batch._cache).num_captured, "a capture failed"
    batch.admit(sequences)
    return batch


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 1},
    "constrained": {},
    "3 beams": {"num_beams": 3},
}
# The lengths of the slots; of beams also their moves.
OPERATIONS = {"greedy": 1, "sampled": 1, "constrained": 1, "3 beams": 3}


@pytest.mark.parametrize(("num", "name"), [(1, "greedy"), *((9, name) for name in OPTIONS)])
def test_a_step_waits_once_for_its_device(artifacts: Path, traffic: DeviceTraffic, num: int, name: str) -> None:
    """Outside of its graphs a step needs few transfers, of which one waits, and few operations, for all rows."""
    options = OPTIONS[name]
    if name == "constrained":
        options = {"constraint": some_tokens(artifacts)}
    batch = meta_batch(artifacts, traffic, num, 8, **options)
    for token_id in range(1, 6):
        traffic.set_values = partial(set_results, token_id)
        traffic.clear()
        batch.step()
        if token_id > 1:  # the first tokens are those of the prefill
            assert traffic.to_host.total() == 1
            assert traffic.waits.total() == 0, "only the event of the results may wait"
            assert traffic.num_transfers == 2, (traffic.to_device, traffic.to_host)
            assert traffic.operations.total() == OPERATIONS[name], traffic.operations
    assert [sequence.error for sequence in batch.live] == [None] * num
    assert {token_id for sequence in batch.live for token_id in sequence.last_token_ids} == {5}


@dataclass
class LoggedEvent:
    """The event after a copy of results, with the log of the passes that were launched before and after it."""

    log: list[str]

    def record(self) -> None:
        self.log.append("copy")

    def synchronize(self) -> None:
        self.log.append("wait")


def logged_batch(artifacts: Path, traffic: DeviceTraffic, num: int, num_steps: int, **options: Any) -> Any:
    """Return the batch of `meta_batch` after its first step, and the log of its later ones."""
    log: list[str] = []
    batch = meta_batch(artifacts, traffic, num, num_steps, log, **options)
    assert batch._recorded is not None
    batch._recorded.results_copied = LoggedEvent(log)
    traffic.set_values = partial(set_results, 7)
    batch.step()
    return batch, log


def test_the_next_pass_is_launched_before_the_results_are_awaited(artifacts: Path, traffic: DeviceTraffic) -> None:
    batch, log = logged_batch(artifacts, traffic, 3, 8)
    assert log == ["pass", "choice", "copy", "pass", "wait"]
    for _ in range(4):
        log.clear()
        batch.step()
        assert log == ["choice", "copy", "pass", "wait"]
    assert [len(sequence.token_ids) for sequence in batch.live] == [6] * 3


def test_no_pass_is_launched_that_is_certainly_superfluous(artifacts: Path, traffic: DeviceTraffic) -> None:
    batch, log = logged_batch(artifacts, traffic, 2, 0)  # 4 tokens each, of which 2 are written
    log.clear()
    batch.step()
    assert log == ["choice", "copy", "pass", "wait"]
    log.clear()
    batch.step()
    assert log == ["choice", "copy", "wait"]
    assert len(batch.remove_ended()) == 2


def test_beams_admitted_while_a_pass_runs_join_the_next_one(artifacts: Path, traffic: DeviceTraffic) -> None:
    batch, log = logged_batch(artifacts, traffic, 2, 8)
    beams = BeamSequence(replace(batch.live[0].request, num_beams=3), batch.live[0].rules)
    traffic.set_values = Tensor.zero_  # the first tokens are not chosen by a graph
    batch.admit([beams])
    traffic.set_values = partial(set_results, 7)
    for num_settled in ([3, 3, 1], [4, 4, 2], [5, 5, 3]):  # the beams have no row in the pass in flight
        log.clear()
        batch.step()
        assert log == ["choice", "copy", "pass", "wait"]
        assert [len(each.settled_token_ids) for each in batch.live] == num_settled


def test_freeing_slots_waits_for_nothing(artifacts: Path, traffic: DeviceTraffic) -> None:
    """A transfer would wait for the pass in flight; the last sequence moves into the freed slot on the device."""
    batch, log = logged_batch(artifacts, traffic, 5, 8)
    for slot in (1, 0):
        batch.live[slot].finish_reason = "stop"
        traffic.clear()
        log.clear()
        batch.remove_ended()
        assert (traffic.waits.total(), traffic.num_transfers, log) == (0, 0, [])
    batch.step()
    assert [len(sequence.token_ids) for sequence in batch.live] == [3] * 3


def set_results(token_id: int, results: Tensor) -> None:
    """Write results (R, 3 + 4 K) in which all chosen tokens and all candidates are `token_id`, with probability 1."""
    results.zero_()
    results[:, 0] = token_id
    results[:, 3 : 3 + (results.shape[1] - 3) // 4] = token_id


def some_tokens(artifacts: Path) -> Constraint:
    decoder = load_decoder(artifacts, read_manifest(artifacts).family, "float32", "meta")
    return decoder.constraints.get("start: <[0-5]>*")


def test_recorded_operations_fail_where_they_use_the_host(traffic: DeviceTraffic) -> None:
    one, row = torch.zeros(2, 3, device="meta"), torch.zeros(3)
    uses: list[Callable[[], Tensor]] = [
        lambda: one.cpu(),
        lambda: one.copy_(row.expand(2, 3)),
        lambda: one[:, torch.tensor([0, 1])],
        lambda: torch.tensor([1.0], device="meta") + one,
    ]
    for use in uses:
        traffic.clear()
        with pytest.raises(AssertionError, match="must not use the host"):
            traffic.record(use)
        assert traffic.num_transfers == 1, traffic
    traffic.record(lambda: one + 1)
