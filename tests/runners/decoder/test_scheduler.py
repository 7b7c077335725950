import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace

import pytest
import torch

from runners.decoder.scheduler import Scheduler, WrittenSequence
from runners.decoder.sequences import SequenceRequest
from runners.errors import SequenceError
from runners.options import SchedulerLimits
from tests.support.fake_decoder import CRASH, EOS, POISON, FakeDecoder
from tests.support.token_choices import is_failure

TIMEOUT_S = 30
LIMITS = SchedulerLimits(num_slots=4, max_waiting=8, max_prefill_tokens=1000)


def request(*token_ids: int) -> SequenceRequest:
    return SequenceRequest(torch.zeros(2, 4), token_ids, max_new_tokens=16)


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder()


@pytest.fixture
def scheduler(decoder: FakeDecoder) -> Iterator[Scheduler]:
    scheduler = Scheduler(decoder, "fake", LIMITS)
    yield scheduler
    scheduler.stop()


def written(future: "Future[WrittenSequence]") -> tuple[int, ...]:
    return future.result(TIMEOUT_S).sequence.token_ids


def test_each_sequence_gets_its_own_answer(scheduler: Scheduler) -> None:
    answers = [(5, 6, 7), (8,), (9,) * 10, (), (2, 3)]
    futures = scheduler.submit([request(*answer) for answer in answers])
    scheduler.start()
    assert [written(future) for future in futures] == [(*answer, EOS) for answer in answers]


def test_queued_sequences_are_batched_up_to_the_limit(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    futures = scheduler.submit([request(5)] * 6)
    scheduler.start()
    wait(futures, TIMEOUT_S)
    assert decoder.batch_sizes == [4, 2]


def test_a_poisoned_sequence_fails_alone(scheduler: Scheduler) -> None:
    good, bad, other = scheduler.submit([request(5, 6, 7), request(5, POISON, 7), request(8, 9)])
    scheduler.start()
    assert written(good) == (5, 6, 7, EOS)
    assert written(other) == (8, 9, EOS)
    with pytest.raises(SequenceError, check=is_failure("non_finite_logits")):
        bad.result(TIMEOUT_S)


def test_after_a_crashed_batch_the_next_succeeds(scheduler: Scheduler) -> None:
    crashed = scheduler.submit([request(5), request(CRASH)])
    scheduler.start()
    for future in crashed:
        with pytest.raises(RuntimeError, match="the batch crashed"):
            future.result(TIMEOUT_S)
    (after,) = scheduler.submit([request(6)])
    assert written(after) == (6, EOS)


def test_either_all_requests_are_queued_or_none(scheduler: Scheduler) -> None:
    accepted = scheduler.submit([request(5)] * 7)
    with pytest.raises(
        SequenceError,
        check=is_failure("overloaded"),
        match="7 sequences are queued, 2 were submitted, at most 8 are allowed",
    ):
        scheduler.submit([request(6)] * 2)
    scheduler.start()
    assert all(written(future) == (5, EOS) for future in accepted)


def test_more_beams_than_slots_are_refused(scheduler: Scheduler) -> None:
    with pytest.raises(
        SequenceError,
        check=is_failure("too_many_beams"),
        match="num_beams is 5; at most 4 are allowed",
    ):
        scheduler.submit([replace(request(5), num_beams=5)])
    scheduler.start()


def test_a_cancelled_queued_sequence_is_not_prefilled(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    gone, kept = scheduler.submit([request(5), request(6)])
    assert gone.cancel()
    scheduler.start()
    assert written(kept) == (6, EOS)
    assert decoder.batch_sizes == [1]


def test_an_expired_queued_sequence_is_not_prefilled(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    (expired,) = scheduler.submit([replace(request(5), deadline_s=time.monotonic() - 1)])
    scheduler.start()
    with pytest.raises(SequenceError, check=is_failure("deadline_exceeded")):
        expired.result(TIMEOUT_S)
    assert decoder.batch_sizes == []


def test_stop_finishes_accepted_sequences(decoder: FakeDecoder) -> None:
    scheduler = Scheduler(decoder, "fake", replace(LIMITS, num_slots=2))
    futures = scheduler.submit([request(5)] * 5)
    scheduler.start()
    scheduler.stop()
    assert all(future.done() and written(future) == (5, EOS) for future in futures)


def test_the_listener_is_called_after_every_step(
    scheduler: Scheduler, decoder: FakeDecoder
) -> None:
    received: list[tuple[int, tuple[int, ...]]] = []
    first = replace(
        request(5, 6, 7),
        on_tokens=lambda ids: received.append((len(decoder.step_sizes), tuple(ids))),
    )
    future, _ = scheduler.submit([first, request(8, 9)])
    scheduler.start()
    assert written(future) == (5, 6, 7, EOS)
    assert received == [(0, (5,)), (1, (6,)), (2, (7,)), (3, (EOS,))]
