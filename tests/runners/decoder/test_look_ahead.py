"""Passes of the model that are launched before the tokens that they read are known: answers stay
those of one alone.

Graphs are captured by a fake that computes eagerly; tests/gpu counts transfers
and waits.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from runners.decoder.batch import LiveBatch, generate_all, generate_each, start_sequence
from runners.decoder.engines import GraphEngine
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import LiveSequence, SequenceRequest
from runners.kv_cache import SlotCache
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from runners.tokens.choice import NextInputs
from tests.support.decoder_cases import Case, make_case
from tests.support.export_cli import ModelStore
from tests.support.lora import write_adapter
from tests.support.passes import capture_eagerly, make_endless
from tests.support.token_choices import is_failure
from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.manifest import DECODER_FILE, read_manifest

FLORENCE = "florence-2-mini"
# adapters and lengths of answers; the last moves to the slot of the first
ADAPTERS = ((None, 6), (None, 12), ("tuned", 9))
TIMEOUT_S = 60
NUM_SLOTS = 7


class NotedCache(SlotCache):
    num_rolled_back = 0

    def roll_back(self, slot: int) -> None:
        self.num_rolled_back += 1
        super().roll_back(slot)


class Passes(GraphEngine):
    """Logs passes and the copies of results, and notes the passes launched ahead and those rolled
    back; may fail in one of them.
    """

    def __init__(self, decoder: Decoder, num_slots: int = NUM_SLOTS) -> None:
        super().__init__(decoder, num_slots, capture_eagerly)
        self._eager.cache = self.cache = self.noted = NotedCache(decoder.shape, num_slots)
        self.log: list[str] = []
        graphs: Any = self.graphs
        graphs.results_copied = self
        self.num_slots_ahead: list[int] = []
        self.failing: int | None = None  # the number of a pass launched ahead
        self.poisoned: tuple[int, int] | None = None  # likewise, and the slot that it makes NaN

    def launch(self, num_slots: int) -> Tensor:
        self.log.append("pass")
        return super().launch(num_slots)

    def record(self) -> None:
        self.log.append("copy")

    def synchronize(self) -> None:
        self.log.append("wait")

    def look_ahead(self, inputs: NextInputs) -> Tensor:
        self.num_slots_ahead.append(len(inputs.rows))
        if len(self.num_slots_ahead) == self.failing:
            raise RuntimeError("the launch failed")
        launched = super().look_ahead(inputs)
        if self.poisoned is not None and self.poisoned[0] == len(self.num_slots_ahead):
            slot = self.poisoned[1]
            position = self.cache.num_tokens.on_host[slot] - 1
            launched[slot] = math.nan
            self.cache.self_attention._memory[:, :, slot, :, position] = math.nan
            self.poisoned = None
        return launched


def mixed_requests(case: Case, num: int) -> list[SequenceRequest]:
    """Return greedy, sampled and constrained requests, and some with beams, of different
    lengths.
    """
    words = case.decoder.text.constraints.get("start: /[a-z <>_0-9]{0,60}/")
    requests = []
    for index in range(num):
        request = case.request(index, 1 + index * 7 % 30, {2: 3, 5: 2}.get(index % 8, 1))
        if index % 4 == 1 and request.num_beams == 1:
            # The nucleus of the flattest is wider than the usual one.
            temperature, top_p = [(0.9, 0.8), (40.0, 0.95), (1.0, 1.0)][index % 3]
            request = replace(request, temperature=temperature, top_p=top_p, seed=index)
        requests.append(replace(request, constraint=words if index % 3 == 0 else None))
    return requests


def in_traffic(
    decoder: Decoder, passes: Passes, requests: Sequence[SequenceRequest], seed: int
) -> tuple[list[LiveSequence], set[int]]:
    """Generate requests that arrive at random between steps.

    Return them and the places of those cancelled.
    """
    random = Random(seed)
    batch = LiveBatch(decoder, NUM_SLOTS, lambda *_: passes)
    cancelled = set()
    sequences = [start_sequence(request, decoder.rules) for request in requests]
    waiting = list(sequences)
    while waiting or batch.slots.of:
        arrived: list[LiveSequence] = []
        while waiting and random.random() < 0.4:
            num_arrived = sum(one.request.num_beams for one in [*arrived, waiting[0]])
            if num_arrived + len(batch.slots.by_slot) > NUM_SLOTS:
                break
            arrived.append(waiting.pop(0))
        if arrived:
            batch.admit(arrived)
        for sequence in batch.slots.of:
            if not sequence.has_ended and random.random() < 0.03:
                sequence.finish_reason = "stop"
                cancelled.add(sequences.index(sequence))
        batch.remove_ended()
        if batch.slots.of:
            batch.step()
            batch.remove_ended()
    return sequences, cancelled


@pytest.mark.parametrize(
    "name", ["florence-2-mini", "florence-2-mini released rules", "random paligemma2"]
)
def test_answers_in_random_traffic_equal_those_alone(
    name: str, exported: ModelStore, tmp_path: Path
) -> None:
    case = make_case(name, exported, tmp_path)
    requests = mixed_requests(case, 48)
    alone = [generate_each(case.decoder, [request])[0].result() for request in requests]
    passes = Passes(case.decoder)
    sequences, cancelled = in_traffic(case.decoder, passes, requests, seed=0)
    for place, (sequence, expected) in enumerate(zip(sequences, alone, strict=True)):
        if place in cancelled:
            settled = tuple(sequence.settled_token_ids)
            assert settled == expected.token_ids[: len(settled)]
        else:
            assert sequence.result().token_ids == expected.token_ids
            assert sequence.result().logprobs == pytest.approx(
                expected.logprobs, rel=1e-4, abs=1e-4
            )
    assert len(cancelled) > 3
    assert len(passes.num_slots_ahead) > 50
    assert passes.noted.num_rolled_back > 20


def endless(artifacts: Path, max_positions: int) -> tuple[Decoder, list[SequenceRequest]]:
    """Return a decoder with few positions whose answers end at their limits, and requests that fill
    them.
    """
    family = read_manifest(artifacts).family
    decoder = load_decoder(artifacts, family, "float32", "cpu", max_positions)
    make_endless(decoder)
    hidden_size = read_manifest(artifacts).hidden_size
    requests = []
    for index, text in enumerate(["a", "abc", "what", "the text", "an image"]):
        prompt_ids = decoder.text.prompt_ids([(text, False)])
        features = torch.randn(16, hidden_size, generator=torch.Generator().manual_seed(index))
        # the last ones move
        limit = decoder.shape.max_new_tokens(16 + len(prompt_ids)) - 4 * max(0, 3 - index)
        requests.append(SequenceRequest(features, prompt_ids, limit, temperature=10.0, seed=index))
    return decoder, requests


def passes_batch(decoder: Decoder) -> tuple[LiveBatch, Passes]:
    passes = Passes(decoder)
    return LiveBatch(decoder, NUM_SLOTS, lambda *_: passes), passes


def test_the_next_pass_is_launched_before_the_results_are_awaited(artifacts: Path) -> None:
    decoder, requests = endless(artifacts, 64)
    batch, passes = passes_batch(decoder)
    batch.admit([start_sequence(replace(requests[4], max_new_tokens=6), decoder.rules)])
    logs: list[list[str]] = []
    while batch.slots.of:
        logs.append([*passes.log])
        passes.log.clear()
        batch.step()
        batch.remove_ended()
    first = [["copy", "wait"], ["pass", "copy", "pass", "wait"]]
    # no pass is launched that is certainly superfluous
    assert [*logs, passes.log] == [*first, *[["copy", "pass", "wait"]] * 3, ["copy", "wait"]]


def test_moved_and_full_sequences_lose_no_step(artifacts: Path) -> None:
    decoder, requests = endless(artifacts, 64)
    sequences = [start_sequence(request, decoder.rules) for request in requests]
    batch, passes = passes_batch(decoder)
    batch.admit(sequences)
    for num_tokens in range(2, max(request.max_new_tokens for request in requests) + 1):
        batch.step()
        assert {len(sequence.settled_token_ids) for sequence in batch.slots.of} == {num_tokens}
        batch.remove_ended()
    alone = [generate_each(decoder, [request])[0].result().token_ids for request in requests]
    assert [sequence.result().token_ids for sequence in sequences] == alone
    # all but the passes of the first two tokens
    assert len(passes.num_slots_ahead) == num_tokens - 2


def test_sequences_join_and_leave_at_the_next_launch(artifacts: Path) -> None:
    decoder, requests = endless(artifacts, 64)
    first, second, third = [start_sequence(request, decoder.rules) for request in requests[:3]]
    batch, passes = passes_batch(decoder)
    batch.admit([first, second])
    batch.step()
    second.finish_reason = "stop"
    batch.remove_ended()
    batch.admit([third])
    for num_tokens in ([3, 1], [4, 2]):
        batch.step()
        assert [len(one.settled_token_ids) for one in (first, third)] == num_tokens
    assert passes.num_slots_ahead == [2, 2, 2]
    assert list(batch.slots.of) == [first, third]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_nan_of_a_moved_sequence_fails_it_alone(artifacts: Path, num_beams: int) -> None:
    decoder, requests = endless(artifacts, 64)
    short = replace(requests[0], max_new_tokens=4)
    requests[4] = replace(requests[4], temperature=0.0, num_beams=num_beams)
    ended, others, moved = [
        start_sequence(request, decoder.rules) for request in (short, requests[2], requests[4])
    ]
    batch, passes = passes_batch(decoder)
    passes.poisoned = (2, 2)
    batch.admit([ended, others, moved])
    for _ in range(2):
        batch.step()
        batch.remove_ended()
    ended.finish_reason = "stop"
    # the last one moves to its slot, before its NaN is known
    assert batch.remove_ended() == [ended]
    admitted = start_sequence(requests[0], decoder.rules)
    batch.admit([admitted])  # to the slot that it has left
    while batch.slots.of:
        batch.step()
        batch.remove_ended()
    assert is_failure("non_finite_logits")(moved.error)
    alone = [one.result().token_ids for one in generate_each(decoder, [requests[0], requests[2]])]
    assert [admitted.result().token_ids, others.result().token_ids] == alone


@pytest.mark.parametrize(("pool_rank", "num_without"), [(0, 9), (4, 1)])
def test_adapters_without_a_place_wait_for_each_pass(
    exported: ModelStore, tmp_path: Path, pool_rank: int, num_without: int
) -> None:
    case = make_case(FLORENCE, exported, tmp_path)
    artifacts = exported.newest(FLORENCE)
    adapters = Adapters()
    decoder = load_decoder(artifacts, "florence2", "float32", "cpu", adapters=adapters)
    adapters.open_pool(pool_rank, 10**9)
    written = write_adapter(case.reference.model, tmp_path / "tuned", 0)
    adapters.add("tuned", read_adapter(written, artifacts / DECODER_FILE, AdapterLimits()))
    make_endless(decoder)
    passes = Passes(decoder)
    requests = [
        replace(case.request(index, num_tokens), adapter=name)
        for index, (name, num_tokens) in enumerate(ADAPTERS)
    ]
    generated = generate_each(decoder, requests, lambda *_: passes)
    together = [sequence.result().token_ids for sequence in generated]
    alone = [generate_each(decoder, [request])[0].result().token_ids for request in requests]
    assert together == alone
    # the first token is that of the prefill, the adapter's last the ninth; 12 in all
    assert len(passes.num_slots_ahead) == 11 - num_without


@pytest.mark.parametrize(
    "fails_in_launch", [True, False], ids=["the launch fails", "fails with a pass in flight"]
)
def test_sequences_start_again_after_a_failure(artifacts: Path, fails_in_launch: bool) -> None:
    decoder, requests = endless(artifacts, 64)
    passes = Passes(decoder)

    def fail_later(_token_ids: Sequence[int]) -> None:
        if len(passes.num_slots_ahead) == 4:
            raise RuntimeError("the listener failed")

    if fails_in_launch:
        passes.failing = 4
    else:
        requests[1] = replace(requests[1], on_tokens=fail_later)
    limits = SchedulerLimits(NUM_SLOTS, 100, 1000)
    scheduler = Scheduler(decoder, "a model", limits, lambda *_: passes)
    scheduler.start()
    written = [future.result(TIMEOUT_S) for future in scheduler.submit(requests[:3])]
    scheduler.stop()
    expected = [generate_all(decoder, [request])[0].token_ids for request in requests[:3]]
    assert [one.sequence.token_ids for one in written] == expected
    assert passes.num_slots_ahead[:6] == [3, 3, 3, 3, 2, 2]
