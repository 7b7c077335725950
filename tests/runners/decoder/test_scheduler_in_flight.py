"""Continuous batching: sequences enter and leave between steps without changing the answers of
others.
"""

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace

import pytest
import torch

from runners.decoder.scheduler import Scheduler, WrittenSequence
from runners.decoder.sequences import SequenceRequest
from runners.errors import SequenceError
from runners.options import SchedulerLimits
from tests.support.fake_decoder import EOS, MAX_POSITIONS, POISON, SHORT_OF_MEMORY, FakeDecoder
from tests.support.token_choices import is_failure
from tests.support.waiting import wait_until

TIMEOUT_S = 30
LIMITS = SchedulerLimits(num_slots=4, max_waiting=1000, max_prefill_tokens=1000)
STEP_S = 0.01


def request(*token_ids: int) -> SequenceRequest:
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


def test_a_short_sequence_overtakes_a_long_one(scheduler: Scheduler) -> None:
    ended = list[str]()
    shorts = list[Future[WrittenSequence]]()

    def submit_short(_token_ids: Sequence[int]) -> None:
        if not shorts:
            shorts.extend(scheduler.submit([request(6)]))
            shorts[0].add_done_callback(lambda _: ended.append("short"))

    (long,) = scheduler.submit([replace(request(*[5] * 50), on_tokens=submit_short)])
    long.add_done_callback(lambda _: ended.append("long"))
    assert written(long) == (*[5] * 50, EOS)
    assert written(shorts[0]) == (6, EOS)
    assert ended == ["short", "long"]


def test_the_slot_of_an_ended_sequence_is_reused_at_once(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    futures = scheduler.submit([request(*[5] * 40)] * 3 + [request(6, 7)] * 6)
    wait(futures, TIMEOUT_S)
    assert all(written(short) == (6, 7, EOS) for short in futures[3:])
    assert decoder.step_sizes == [4] * 6 * 2 + [3] * (40 - 6 * 2)


def test_a_cancelled_sequence_frees_its_slot_within_a_step(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    (gone,) = scheduler.submit([request(*[5] * 60)])
    kept = scheduler.submit([request(*[6] * 20)])[0]
    wait_until(lambda: 2 in decoder.step_sizes)
    gone.cancel()
    num_steps = len(decoder.step_sizes)
    wait_until(lambda: decoder.step_sizes[-1] == 1 or kept.done())
    # one in progress, one that sees the cancellation
    assert decoder.step_sizes[num_steps:].count(2) <= 2
    assert written(kept) == (*[6] * 20, EOS)
    with pytest.raises(CancelledError):
        gone.result()


def test_a_deadline_ends_a_live_sequence(scheduler: Scheduler) -> None:
    (late,) = scheduler.submit(
        [replace(request(*[5] * 60), deadline_s=time.monotonic() + 10 * STEP_S)]
    )
    with pytest.raises(SequenceError, check=is_failure("deadline_exceeded")):
        late.result(TIMEOUT_S)


def test_a_prefill_stays_within_the_token_budget(decoder: FakeDecoder) -> None:
    scheduler = Scheduler(decoder, "fake", replace(LIMITS, max_prefill_tokens=12))
    futures = scheduler.submit(
        [request(5, 5), request(6, 6), request(7, 7), request(8, 8), request(*[9] * 20)]
    )
    scheduler.start()
    wait(futures, TIMEOUT_S)
    assert decoder.batch_sizes[:2] == [3, 1]  # 2 image and 2 prompt tokens each, then no more fit
    assert written(futures[-1]) == (*[9] * 20, EOS)
    scheduler.stop()


def test_beam_search_takes_a_slot_for_each_beam(scheduler: Scheduler, decoder: FakeDecoder) -> None:
    single, beams = scheduler.submit([request(*[5] * 30), replace(request(6, 7, 8), num_beams=3)])
    assert written(beams) == (6, 7, 8, EOS)
    assert written(single) == (*[5] * 30, EOS)
    assert max(decoder.step_sizes) == LIMITS.num_slots


def test_a_queued_sequence_without_enough_slots_is_not_overtaken(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    longs = scheduler.submit([request(*[5] * 20)] * 2)
    wait_until(lambda: 2 in decoder.step_sizes)
    (beams,) = scheduler.submit([replace(request(6), num_beams=4)])
    (behind,) = scheduler.submit([request(7)])
    assert written(beams) == (6, EOS)
    assert all(long.done() for long in longs)
    assert written(behind) == (7, EOS)


def test_a_prefill_that_runs_out_of_memory_is_halved(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    scheduler.submit([request(*[9] * 10)])
    wait_until(lambda: decoder.step_sizes != [])
    futures = scheduler.submit([request(SHORT_OF_MEMORY), request(5), request(6)])
    assert [written(future) for future in futures] == [(SHORT_OF_MEMORY, EOS), (5, EOS), (6, EOS)]
    assert decoder.batch_sizes == [1, 3, 1, 2]


def test_a_failed_step_fails_the_live_sequences_only(decoder: FakeDecoder) -> None:
    scheduler = Scheduler(decoder, "fake", LIMITS)
    decoder.failing_step = 3
    live = scheduler.submit([request(5, 6, 7, 8, 9)] * 2)
    scheduler.start()
    for future in live:
        with pytest.raises(RuntimeError, match="the step failed"):
            future.result(TIMEOUT_S)
    assert written(scheduler.submit([request(6)])[0]) == (6, EOS)
    scheduler.stop()


def test_two_hundred_sequences_some_cancelled_or_poisoned_get_their_own_answers() -> None:
    rng = random.Random(0)
    decoder = FakeDecoder(step_s=0.001)  # slower than sequences arrive, so that all slots are used
    scheduler = Scheduler(decoder, "fake", LIMITS)
    scheduler.start()
    answers = [tuple(rng.choices(range(2, 40), k=rng.randrange(30))) for _ in range(200)]
    futures = []
    for index, answer in enumerate(answers):
        poisoned = (*answer, POISON) if index % 20 == 7 else answer
        futures.extend(scheduler.submit([request(*poisoned)]))
        if index % 10 == 3:
            futures[-1].cancel()
        time.sleep(rng.random() * 0.002)
    scheduler.stop()
    for index, (answer, future) in enumerate(zip(answers, futures, strict=True)):
        if not future.cancelled() and index % 20 != 7:
            assert written(future) == (*answer, EOS)
    assert max(decoder.step_sizes) == LIMITS.num_slots
