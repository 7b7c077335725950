"""Sequences come and go between steps: what that must never change, and what it must make happen at once."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace

import pytest
import torch

from runners.decoder.errors import DeadlineExceeded
from runners.decoder.scheduler import Scheduler, WrittenSequence
from runners.decoder.sequences import SequenceRequest
from runners.options import SchedulerLimits
from tests.support.fake_decoder import EOS, MAX_POSITIONS, POISON, SHORT_OF_MEMORY, FakeDecoder

TIMEOUT_S = 30
LIMITS = SchedulerLimits(num_slots=4, max_waiting=1000, max_prefill_tokens=1000)
STEP_S = 0.01


def asks(*token_ids: int) -> SequenceRequest:
    return SequenceRequest(torch.zeros(2, 4), token_ids, max_new_tokens=MAX_POSITIONS)


def written(future: "Future[WrittenSequence]") -> tuple[int, ...]:
    return future.result(TIMEOUT_S).sequence.token_ids


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(step_s=STEP_S)


@pytest.fixture
def scheduler(decoder: FakeDecoder) -> Iterator[Scheduler]:
    scheduler = Scheduler(decoder, "fake", LIMITS)
    scheduler.start()
    yield scheduler
    scheduler.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what the scheduler's thread does."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(STEP_S / 10)


def test_a_short_sequence_overtakes_a_long_one(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    (long,) = scheduler.submit([asks(*[5] * 50)])
    wait_until(lambda: len(decoder.step_sizes) > 3)
    (short,) = scheduler.submit([asks(6)])
    assert written(short) == (6, EOS)
    assert not long.done()
    assert written(long) == (*[5] * 50, EOS)


def test_who_ends_makes_room_at_once(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    longs = scheduler.submit([asks(*[5] * 40)] * 3)
    shorts = scheduler.submit([asks(6, 7)] * 6)
    assert all(written(short) == (6, 7, EOS) for short in shorts)
    assert not any(long.done() for long in longs)
    assert max(decoder.step_sizes) == LIMITS.num_slots
    wait(longs, TIMEOUT_S)


def test_a_cancelled_sequence_frees_its_slot_within_a_step(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    (gone,) = scheduler.submit([asks(*[5] * 60)])
    kept = scheduler.submit([asks(*[6] * 20)])[0]
    wait_until(lambda: 2 in decoder.step_sizes)
    gone.cancel()
    num_steps = len(decoder.step_sizes)
    wait_until(lambda: decoder.step_sizes[-1] == 1 or kept.done())
    assert decoder.step_sizes[num_steps:].count(2) <= 2  # one may be on its way, one counts as it is cancelled
    assert written(kept) == (*[6] * 20, EOS)
    with pytest.raises(CancelledError):
        gone.result()


def test_a_deadline_ends_a_live_sequence(scheduler: Scheduler) -> None:
    (late,) = scheduler.submit([replace(asks(*[5] * 60), deadline_s=time.monotonic() + 10 * STEP_S)])
    with pytest.raises(DeadlineExceeded):
        late.result(TIMEOUT_S)


def test_a_prefill_stays_within_the_token_budget(decoder: FakeDecoder) -> None:
    scheduler = Scheduler(decoder, "fake", replace(LIMITS, max_prefill_tokens=12))
    futures = scheduler.submit([asks(5, 5), asks(6, 6), asks(7, 7), asks(8, 8), asks(*[9] * 20)])
    scheduler.start()
    wait(futures, TIMEOUT_S)
    assert decoder.batch_sizes[:2] == [3, 1]  # 2 image and 2 prompt tokens each, then no more fit
    assert written(futures[-1]) == (*[9] * 20, EOS)
    scheduler.stop()


def test_a_sequence_with_beams_takes_a_slot_for_each(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    (single,) = scheduler.submit([asks(*[5] * 30)])
    (beams,) = scheduler.submit([replace(asks(6, 7, 8), num_beams=3)])
    assert written(beams) == (6, 7, 8, EOS)
    assert written(single) == (*[5] * 30, EOS)
    assert max(decoder.step_sizes) == LIMITS.num_slots


def test_what_has_no_slots_yet_is_not_overtaken(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    longs = scheduler.submit([asks(*[5] * 20)] * 2)
    wait_until(lambda: 2 in decoder.step_sizes)
    (beams,) = scheduler.submit([replace(asks(6), num_beams=4)])
    (behind,) = scheduler.submit([asks(7)])
    assert written(beams) == (6, EOS)
    assert all(long.done() for long in longs)
    assert written(behind) == (7, EOS)


def test_where_memory_is_short_a_prefill_is_halved(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    scheduler.submit([asks(*[9] * 10)])
    wait_until(lambda: decoder.step_sizes != [])
    futures = scheduler.submit([asks(SHORT_OF_MEMORY), asks(5), asks(6)])
    assert [written(future) for future in futures] == [(SHORT_OF_MEMORY, EOS), (5, EOS), (6, EOS)]
    assert decoder.batch_sizes == [1, 3, 1, 2]


def test_a_step_that_fails_is_told_to_all_who_are_live_and_to_nobody_else(decoder: FakeDecoder) -> None:
    scheduler = Scheduler(decoder, "fake", LIMITS)
    decoder.failing_step = 3
    live = scheduler.submit([asks(5, 6, 7, 8, 9)] * 2)
    scheduler.start()
    for future in live:
        with pytest.raises(RuntimeError, match="the step failed"):
            future.result(TIMEOUT_S)
    assert written(scheduler.submit([asks(6)])[0]) == (6, EOS)
    scheduler.stop()


def test_two_hundred_at_random_times_some_cancelled_some_poisoned_each_get_their_own_answer() -> None:
    rng = random.Random(0)
    decoder = FakeDecoder(step_s=0.001)  # slower than they come, so that all slots are taken
    scheduler = Scheduler(decoder, "fake", LIMITS)
    scheduler.start()
    answers = [tuple(rng.randrange(2, 40) for _ in range(rng.randrange(30))) for _ in range(200)]
    futures = []
    for index, answer in enumerate(answers):
        poisoned = (*answer, POISON) if index % 20 == 7 else answer
        futures.extend(scheduler.submit([asks(*poisoned)]))
        if index % 10 == 3:
            futures[-1].cancel()
        time.sleep(rng.random() * 0.002)
    scheduler.stop()
    for index, (answer, future) in enumerate(zip(answers, futures, strict=True)):
        if not future.cancelled() and index % 20 != 7:
            assert written(future) == (*answer, EOS)
    assert max(decoder.step_sizes) == LIMITS.num_slots
