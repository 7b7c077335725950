import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace

import pytest
import torch

from runners.batch_loop import BatchLoop, WrittenSequence
from runners.sequences import DeadlineExceeded, NonFiniteLogits, Overloaded, SequenceRequest
from tests.support.fake_decoder import CRASH, EOS, POISON, FakeDecoder

TIMEOUT_S = 30


def asks(*token_ids: int) -> SequenceRequest:
    return SequenceRequest(torch.zeros(2, 4), token_ids, max_new_tokens=16)


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder()


@pytest.fixture
def loop(decoder: FakeDecoder) -> Iterator[BatchLoop]:
    loop = BatchLoop(decoder, "fake", max_batch_size=4, max_waiting=8)
    yield loop
    loop.stop()


def written(future: "Future[WrittenSequence]") -> tuple[int, ...]:
    return future.result(TIMEOUT_S).sequence.token_ids


def test_each_gets_its_own_answer_whatever_its_length(loop: BatchLoop) -> None:
    answers = [(5, 6, 7), (8,), (9,) * 10, (), (2, 3)]
    futures = loop.submit([asks(*answer) for answer in answers])
    loop.start()
    assert [written(future) for future in futures] == [(*answer, EOS) for answer in answers]


def test_what_waits_becomes_batches_of_at_most_the_limit(loop: BatchLoop, decoder: FakeDecoder) -> None:
    futures = loop.submit([asks(5)] * 6)
    loop.start()
    wait(futures, TIMEOUT_S)
    assert decoder.batch_sizes == [4, 2]


def test_a_poisoned_sequence_fails_alone(loop: BatchLoop) -> None:
    good, bad, other = loop.submit([asks(5, 6, 7), asks(5, POISON, 7), asks(8, 9)])
    loop.start()
    assert written(good) == (5, 6, 7, EOS)
    assert written(other) == (8, 9, EOS)
    with pytest.raises(NonFiniteLogits):
        bad.result(TIMEOUT_S)


def test_a_crashed_batch_fails_and_the_next_is_written(loop: BatchLoop) -> None:
    crashed = loop.submit([asks(5), asks(CRASH)])
    loop.start()
    for future in crashed:
        with pytest.raises(RuntimeError, match="the batch crashed"):
            future.result(TIMEOUT_S)
    (after,) = loop.submit([asks(6)])
    assert written(after) == (6, EOS)


def test_all_or_none_are_accepted(loop: BatchLoop) -> None:
    accepted = loop.submit([asks(5)] * 7)
    with pytest.raises(Overloaded, match="7 sequences wait already, at most 8 may"):
        loop.submit([asks(6)] * 2)
    loop.start()
    assert all(written(future) == (5, EOS) for future in accepted)


def test_a_cancelled_sequence_takes_no_place_in_a_batch(loop: BatchLoop, decoder: FakeDecoder) -> None:
    gone, kept = loop.submit([asks(5), asks(6)])
    assert gone.cancel()
    loop.start()
    assert written(kept) == (6, EOS)
    assert decoder.batch_sizes == [1]


def test_an_expired_sequence_is_not_written(loop: BatchLoop, decoder: FakeDecoder) -> None:
    (expired,) = loop.submit([replace(asks(5), deadline_s=time.monotonic() - 1)])
    loop.start()
    with pytest.raises(DeadlineExceeded):
        expired.result(TIMEOUT_S)
    assert decoder.batch_sizes == []


def test_stop_writes_what_was_accepted(decoder: FakeDecoder) -> None:
    loop = BatchLoop(decoder, "fake", max_batch_size=2, max_waiting=8)
    futures = loop.submit([asks(5)] * 5)
    loop.start()
    loop.stop()
    assert all(future.done() and written(future) == (5, EOS) for future in futures)


def test_times_are_told(loop: BatchLoop) -> None:
    (future,) = loop.submit([asks(5)])
    time.sleep(0.05)
    loop.start()
    result = future.result(TIMEOUT_S)
    assert result.queue_s >= 0.05
    assert result.prefill_s >= 0
    assert result.decode_s >= 0
