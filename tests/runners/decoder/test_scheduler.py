"""Continuous batching: sequences enter and leave between steps without changing the answers of
others.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.decoder.engines import EagerEngine
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest, WrittenSequence
from runners.errors import SequenceError
from runners.kv_cache import SlotCache, TokenPlaces
from runners.options import SchedulerLimits
from tests.support.api_keys import FakeClock
from tests.support.fake_decoder import (
    CRASH,
    EOS,
    MAX_POSITIONS,
    POISON,
    SHORT_OF_MEMORY,
    FakeDecoder,
)
from tests.support.token_choices import is_failure
from tests.support.waiting import wait_until

TIMEOUT_S = 30
LIMITS = SchedulerLimits(num_slots=4, max_waiting=9, max_prefill_tokens=1000)
STEP_S = 0.01


def request(*token_ids: int) -> SequenceRequest:
    return SequenceRequest(torch.zeros(2, 4), token_ids, max_new_tokens=MAX_POSITIONS)


def tokens_of(future: "Future[WrittenSequence]") -> tuple[int, ...]:
    return future.result(TIMEOUT_S).sequence.token_ids


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(step_s=STEP_S)


@pytest.fixture
def scheduler(decoder: FakeDecoder) -> Iterator[Scheduler]:
    """A scheduler that a test starts."""
    scheduler = Scheduler(decoder, "fake", LIMITS)
    yield scheduler
    scheduler.stop()


@pytest.fixture
def running(scheduler: Scheduler) -> Scheduler:
    scheduler.start()
    return scheduler


@pytest.fixture
def tried_parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts whose device was tried after a failure."""
    parts: list[str] = []
    name = "runners.decoder.scheduler.exit_if_device_lost"
    monkeypatch.setattr(name, lambda _, part: parts.append(part))
    return parts


def test_each_sequence_gets_its_own_answer(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    answers = [(5, 6, 7), (8,), (9,) * 10, (), (2, 3)]
    futures = scheduler.submit([request(*answer) for answer in answers])
    scheduler.start()
    assert [tokens_of(future) for future in futures] == [(*answer, EOS) for answer in answers]
    assert decoder.batch_sizes == [4, 1]


def test_failures_end_as_few_sequences_as_possible(
    scheduler: Scheduler, tried_parts: list[str]
) -> None:
    good, poisoned = scheduler.submit([request(5, 6, 7), request(5, POISON, 7)])
    scheduler.start()
    assert tokens_of(good) == (5, 6, 7, EOS)
    with pytest.raises(SequenceError, check=is_failure("non_finite_logits")):
        poisoned.result(TIMEOUT_S)
    for future in scheduler.submit([request(5), request(CRASH)]):
        with pytest.raises(RuntimeError, match="the batch crashed"):
            future.result(TIMEOUT_S)
    (wide,) = scheduler.submit([replace(request(6), num_beams=4)])  # needs every slot
    assert tokens_of(wide) == (6, EOS)
    assert tried_parts == ["the decoder of fake"]


def test_a_failed_step_is_repeated_in_halves(
    scheduler: Scheduler, decoder: FakeDecoder, tried_parts: list[str]
) -> None:
    decoder.failing_steps = (3, 3 + 5 + 2)  # steps of all, and of the second half
    answers = [(5, 6, 7, 8, 9), (6, 7, 8, 9, 5), (8, 7, 8, 9, 5)]
    wide = replace(request(5, 6), num_beams=4)  # needs every slot
    *first_half, failed, later = scheduler.submit([*(request(*one) for one in answers), wide])
    scheduler.start()
    assert [tokens_of(future) for future in first_half] == [(*one, EOS) for one in answers[:2]]
    with pytest.raises(RuntimeError, match="the step failed"):
        failed.result(TIMEOUT_S)
    assert tokens_of(later) == (5, 6, EOS)
    assert decoder.step_sizes[:10] == [3, 3, 3, 2, 2, 2, 2, 2, 1, 1]
    assert decoder.batch_sizes == [3, 1, 1, 1, 1]
    assert tried_parts == ["the decoder of fake"] * 2


def test_a_cancelled_sequence_is_not_repeated(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    def cancel(_: Sequence[int]) -> None:
        cancelled.cancel()

    decoder.failing_steps = (1,)
    cancelled, other, listener = scheduler.submit(
        [request(5, 6, 7), request(6, 7), replace(request(7, 8, 9), on_tokens=cancel)]
    )
    scheduler.start()
    assert tokens_of(listener) == (7, 8, 9, EOS)
    assert tokens_of(other) == (6, 7, EOS)
    assert decoder.batch_sizes == [3, 1, 1]


def test_repeated_steps_draw_the_same_tokens(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    received: list[int] = []
    decoder.failing_steps = (4,)
    sampled = replace(request(*[5] * 40), temperature=3.0, on_tokens=received.extend)
    (future,) = scheduler.submit([replace(sampled, top_p=0.99)])
    scheduler.start()
    assert tokens_of(future) == tuple(received)


class FailsAfterPrefill(SlotCache):
    """Fails once where the rows of a sequence with beams are copied, after its first slot was
    taken.
    """

    failure: Exception | None = None

    def add_beams(self, slots_of: Sequence[Sequence[int]]) -> None:
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        super().add_beams(slots_of)


@pytest.mark.parametrize("failure", [RuntimeError("no copy"), torch.OutOfMemoryError("no copy")])
def test_a_failed_prefill_frees_its_slots(failure: Exception) -> None:
    decoder = FakeDecoder()
    engine = EagerEngine(decoder, 4)
    engine.cache = cache = FailsAfterPrefill(decoder.shape, 4)
    cache.failure = failure
    scheduler = Scheduler(decoder, "fake", LIMITS, lambda *_: engine)
    scheduler.start()
    wide = replace(request(5, 6), num_beams=4)
    (failed,) = scheduler.submit([wide])
    with pytest.raises(type(failure), match="no copy"):
        failed.result(TIMEOUT_S)
    assert tokens_of(scheduler.submit([wide])[0]) == (5, 6, EOS)  # needs every slot
    scheduler.stop()


class CapturesFew(EagerEngine):
    """Prefills of short prompts are captured, as those of a GPU are."""

    def captures(self, request: SequenceRequest) -> bool:
        return len(request.prompt_ids) < 3


def test_a_prefill_that_is_not_captured_delays_no_other(decoder: FakeDecoder) -> None:
    scheduler = Scheduler(decoder, "fake", LIMITS, CapturesFew)
    answers = [(5,), (6,) * 9, (7,)]
    futures = scheduler.submit([request(*answer) for answer in answers])
    scheduler.start()
    assert [tokens_of(future) for future in futures] == [(*answer, EOS) for answer in answers]
    assert decoder.batch_sizes == [2, 1]
    scheduler.stop()


def test_a_prefill_out_of_memory_is_halved(running: Scheduler, decoder: FakeDecoder) -> None:
    running.submit([request(*[9] * 10)])
    wait_until(lambda: decoder.step_sizes != [])
    futures = running.submit([request(SHORT_OF_MEMORY), request(5), request(6)])
    assert [tokens_of(future) for future in futures] == [(SHORT_OF_MEMORY, EOS), (5, EOS), (6, EOS)]
    assert decoder.batch_sizes == [1, 3, 1, 2]


def test_either_all_requests_are_queued_or_none(scheduler: Scheduler) -> None:
    accepted = scheduler.submit([request(5)] * 8)
    message = "8 sequences are queued, 2 were submitted, at most 9 are allowed"
    with pytest.raises(SequenceError, check=is_failure("overloaded"), match=message):
        scheduler.submit([request(6)] * 2)
    accepted += scheduler.submit([request(5)])
    message = "num_beams is 5; at most 4 are allowed"
    with pytest.raises(SequenceError, check=is_failure("too_many_beams"), match=message):
        scheduler.submit([replace(request(5), num_beams=5)])
    scheduler.start()
    scheduler.stop()  # finishes accepted sequences
    assert all(future.done() and tokens_of(future) == (5, EOS) for future in accepted)


def test_the_listener_is_called_after_every_step(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    received: list[tuple[int, tuple[int, ...]]] = []

    def listen(token_ids: Sequence[int]) -> None:
        received.append((len(decoder.step_sizes), tuple(token_ids)))

    future, _ = scheduler.submit([replace(request(5, 6, 7), on_tokens=listen), request(8, 9)])
    scheduler.start()
    assert tokens_of(future) == (5, 6, 7, EOS)
    assert received == [(0, (5,)), (1, (6,)), (2, (7,)), (3, (EOS,))]


def test_the_slot_of_an_ended_sequence_is_reused_at_once(
    running: Scheduler, decoder: FakeDecoder
) -> None:
    futures = running.submit([request(*[5] * 40)] * 3 + [request(6, 7)] * 6)
    wait(futures, TIMEOUT_S)
    assert all(tokens_of(short) == (6, 7, EOS) for short in futures[3:])
    assert decoder.step_sizes == [4] * 6 * 2 + [3] * (40 - 6 * 2)


def test_a_cancelled_sequence_frees_its_slot_within_a_step(
    running: Scheduler, decoder: FakeDecoder
) -> None:
    (cancelled,) = running.submit([request(*[5] * 60)])
    (other,) = running.submit([request(*[6] * 20)])
    wait_until(lambda: 2 in decoder.step_sizes)
    cancelled.cancel()
    num_steps = len(decoder.step_sizes)
    wait_until(lambda: decoder.step_sizes[-1] == 1 or other.done())
    # one in progress, one that sees the cancellation
    assert decoder.step_sizes[num_steps:].count(2) <= 2
    assert tokens_of(other) == (*[6] * 20, EOS)
    with pytest.raises(CancelledError):
        cancelled.result()


def test_beams_take_a_slot_each_and_are_not_overtaken(
    running: Scheduler, decoder: FakeDecoder
) -> None:
    long, beams = running.submit([request(*[5] * 20), replace(request(6, 7, 8), num_beams=3)])
    assert tokens_of(beams) == (6, 7, 8, EOS)
    assert decoder.step_sizes[0] == 4
    (wide,) = running.submit([replace(request(6), num_beams=4)])
    (behind,) = running.submit([request(7)])
    assert tokens_of(wide) == (6, EOS)
    assert long.done()
    assert tokens_of(behind) == (7, EOS)


@dataclass(slots=True)
class TimedDecoder(FakeDecoder):
    """Its prefills take 3/8 s a sequence and its steps 1/8 s of a clock that only they move."""

    clock: FakeClock = field(default_factory=FakeClock)
    passes: list[str] = field(default_factory=list)  # "p" and the size of a prefill, "s" of a step

    def prefill(self, cache: SlotCache, embeds: Tensor, *arguments: Any) -> Tensor:
        self.clock.now_s += 3 / 8 * len(embeds)
        self.passes.append(f"p{len(embeds)}")
        return FakeDecoder.prefill(self, cache, embeds, *arguments)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        self.clock.now_s += 1 / 8
        self.passes.append(f"s{len(places.token_ids)}")
        return FakeDecoder.decode_step(self, cache, places)


def timed(num_slots: int, max_waiting: int = 99) -> tuple[Scheduler, TimedDecoder]:
    decoder = TimedDecoder()
    limits = SchedulerLimits(num_slots, max_waiting, max_prefill_tokens=1000)
    return Scheduler(decoder, "fake", limits, now=decoder.clock), decoder


def of(client: str, *token_ids: int) -> SequenceRequest:
    return replace(request(*token_ids), client=client)


def finished(scheduler: Scheduler, futures: Sequence["Future[WrittenSequence]"]) -> list[int]:
    """Run the scheduler; return the indices of sequences in the order of their ends."""
    ended: list[int] = []
    for future in futures:
        future.add_done_callback(lambda ended_one: ended.append(futures.index(ended_one)))
    scheduler.start()
    scheduler.stop()
    return ended


def test_steps_of_others_take_as_long_as_prefills() -> None:
    scheduler, decoder = timed(num_slots=4)
    futures = scheduler.submit([of("light", *[5] * 20)]) + scheduler.submit([of("heavy")] * 4)
    assert finished(scheduler, futures) == [1, 2, 3, 4, 0]  # no tokens: ends in its prefill
    steps = ["s1"] * 20
    alone = ["p1", *steps[:3]]
    assert decoder.passes == ["p2", *steps[:6], *alone * 3, *steps[:5]]


@pytest.mark.parametrize("seed", range(8))
def test_every_sequence_of_any_clients_ends(seed: int) -> None:
    random = Random(seed)
    num_slots = random.randint(1, 6)
    scheduler, _ = timed(num_slots)
    futures: list[Future[WrittenSequence]] = []
    for _ in range(40):
        sequence = of(random.choice("abc"), *[5] * random.randint(0, 9))
        futures += scheduler.submit([replace(sequence, num_beams=random.randint(1, num_slots))])
    for future in random.sample(futures, 5):
        future.cancel()
    assert len(finished(scheduler, futures)) == 40
