"""Transfers, waits and launches of a decode step, on a device without values
(tests/support/device_traffic.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.cuda_graphs.graphs import CudaGraph
from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.beams import BeamSequence
from runners.decoder.engines import GraphEngine
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.tokens.constraints import Constraint
from tests.support.device_traffic import DeviceTraffic, device_traffic, make_endless
from tests.support.export_cli import ModelStore
from wire.artifacts.manifest import read_manifest


@pytest.fixture
def traffic() -> Iterator[DeviceTraffic]:
    with device_traffic() as watched:
        yield watched


@pytest.fixture
def florence(exported: ModelStore) -> Path:
    """The artifacts of one model: the order of passes is the engine's."""
    return exported.newest("florence-2-mini")


@dataclass
class LoggedEvent:
    """The event after a copy of results, with the log of the passes that were launched before and
    after it.
    """

    log: list[str]

    def record(self) -> None:
        self.log.append("copy")

    def synchronize(self) -> None:
        self.log.append("wait")


def meta_batch(
    artifacts: Path,
    traffic: DeviceTraffic,
    num: int,
    num_steps: int,
    log: list[str] | None = None,
    **options: Any,
) -> LiveBatch:
    """Return a batch of `num` sequences on `meta`, whose steps are captured; their launches are
    logged.
    """
    manifest = read_manifest(artifacts)
    max_positions = manifest.num_image_tokens + 96  # few, for few captures
    decoder = load_decoder(artifacts, manifest.family, "float32", "meta", max_positions)
    make_endless(decoder)
    launches = [] if log is None else log
    num_captured = 0

    def capture(compute: Callable[[], Tensor]) -> CudaGraph:
        nonlocal num_captured
        num_captured += 1
        output = traffic.capture(compute).output
        name = "pass" if output.shape[1] == decoder.shape.num_tokens else "choice"
        return CudaGraph(lambda: launches.append(name), output)

    features = torch.zeros(16, manifest.hidden_size, device="meta")
    prompt_ids = decoder.text.prompt_ids([("abc", False)])
    sequences = [
        start_sequence(
            SequenceRequest(features, prompt_ids, num_steps + 4, **options), decoder.rules
        )
        for _ in range(num)
    ]
    num_slots = 3 + sum(sequence.num_rows for sequence in sequences)
    engine = GraphEngine(decoder, num_slots, capture)
    assert num_captured == engine.graphs.num_captured + engine.prefills.num_captured
    if log is not None:
        engine.graphs.results_copied = LoggedEvent(log)
    batch = LiveBatch(decoder, num_slots, lambda *_: engine)
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


@pytest.mark.parametrize(
    ("model_id", "num", "name"),
    [
        ("florence-2-mini", 1, "greedy"),
        *(("florence-2-mini", 9, name) for name in OPTIONS),
        ("paligemma-mini", 9, "greedy"),  # what is chosen, and how, is the engine's
        ("paligemma-mini", 9, "3 beams"),
    ],
)
def test_a_step_waits_once_for_its_device(
    artifacts: Path, traffic: DeviceTraffic, num: int, name: str
) -> None:
    """Outside of its graphs a step needs few transfers, of which one waits, and few operations, for
    all rows.
    """
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


@pytest.mark.parametrize("name", ["greedy", "constrained", "3 beams"])
def test_an_admission_waits_for_its_first_tokens_only(
    artifacts: Path, traffic: DeviceTraffic, name: str
) -> None:
    options = OPTIONS[name]
    if name == "constrained":
        options = {"constraint": some_tokens(artifacts)}
    batch = meta_batch(artifacts, traffic, 9, 8, **options)
    engine: Any = batch._engine
    admitted = [replace(each.request) for each in batch.live]
    rules = batch.live[0].rules
    batch.clear()
    traffic.clear()
    batch.admit([start_sequence(each, rules) for each in admitted])
    assert traffic.waits.total() == 0, "only the event of the results may wait"
    assert traffic.to_host.total() == 1
    if engine.prefills.hold(admitted):  # in parts of 8 and 1, then their choice
        assert traffic.to_device.total() == 3, traffic.to_device
        assert traffic.operations.total() <= 9 + 1, "more than the copies of features and a length"
    else:
        assert traffic.to_device.total() <= 12, traffic.to_device  # for any number of sequences


def logged_batch(
    artifacts: Path, traffic: DeviceTraffic, num: int, num_steps: int, **options: Any
) -> Any:
    """Return the batch of `meta_batch` after its first step, and the log of its later ones."""
    log: list[str] = []
    batch = meta_batch(artifacts, traffic, num, num_steps, log, **options)
    log.clear()
    traffic.set_values = partial(set_results, 7)
    batch.step()
    return batch, log


def test_the_next_pass_is_launched_before_the_results_are_awaited(
    florence: Path, traffic: DeviceTraffic
) -> None:
    batch, log = logged_batch(florence, traffic, 3, 8)
    assert log == ["pass", "choice", "copy", "pass", "wait"]
    for _ in range(4):
        log.clear()
        batch.step()
        assert log == ["choice", "copy", "pass", "wait"]
    assert [len(sequence.token_ids) for sequence in batch.live] == [6] * 3


def test_no_pass_is_launched_that_is_certainly_superfluous(
    florence: Path, traffic: DeviceTraffic
) -> None:
    batch, log = logged_batch(florence, traffic, 2, 0)  # 4 tokens each, of which 2 are written
    log.clear()
    batch.step()
    assert log == ["choice", "copy", "pass", "wait"]
    log.clear()
    batch.step()
    assert log == ["choice", "copy", "wait"]
    assert len(batch.remove_ended()) == 2


def test_beams_admitted_while_a_pass_runs_join_the_next_one(
    florence: Path, traffic: DeviceTraffic
) -> None:
    batch, log = logged_batch(florence, traffic, 2, 8)
    beams = BeamSequence(replace(batch.live[0].request, num_beams=3), batch.live[0].rules)
    traffic.set_values = Tensor.zero_  # the first tokens are not chosen by a graph
    batch.admit([beams])
    traffic.set_values = partial(set_results, 7)
    # the beams have no row in the pass in flight
    for num_settled in ([3, 3, 1], [4, 4, 2], [5, 5, 3]):
        log.clear()
        batch.step()
        assert log == ["choice", "copy", "pass", "wait"]
        assert [len(each.settled_token_ids) for each in batch.live] == num_settled


def test_freeing_slots_waits_for_nothing(florence: Path, traffic: DeviceTraffic) -> None:
    """A transfer would wait for the pass in flight.

    The last sequence moves into the freed slot on the device.
    """
    batch, log = logged_batch(florence, traffic, 5, 8)
    for slot in (1, 0):
        batch.live[slot].finish_reason = "stop"
        traffic.clear()
        log.clear()
        batch.remove_ended()
        assert (traffic.waits.total(), traffic.num_transfers, log) == (0, 0, [])
    batch.step()
    assert [len(sequence.token_ids) for sequence in batch.live] == [3] * 3


def set_results(token_id: int, results: Tensor) -> None:
    """Write results (R, 2 + 4 K + 1): all tokens and candidates are `token_id`, certainly."""
    results.zero_()
    results[:, 0] = token_id
    results[:, 2 : 2 + (results.shape[1] - 3) // 4] = token_id


def some_tokens(artifacts: Path) -> Constraint:
    decoder = load_decoder(artifacts, read_manifest(artifacts).family, "float32", "meta")
    return decoder.text.constraints.get("start: <[0-5]>*")


def test_captured_operations_fail_where_they_use_the_host(traffic: DeviceTraffic) -> None:
    one = torch.zeros(2, 3, device="meta")
    row = torch.zeros(3)
    uses: list[Callable[[], Tensor]] = [
        lambda: one.cpu(),
        lambda: one.copy_(row.expand(2, 3)),
        lambda: one[:, torch.tensor([0, 1])],
        lambda: torch.tensor([1.0], device="meta") + one,
    ]
    for use in uses:
        traffic.clear()
        with pytest.raises(AssertionError, match="must not use the host"):
            traffic.capture(use)
        assert traffic.num_transfers == 1, traffic
    traffic.capture(lambda: one + 1)
