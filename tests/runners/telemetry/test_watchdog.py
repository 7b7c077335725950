import logging
import threading
from dataclasses import dataclass, field

import pytest
import torch

from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from runners.options import SchedulerLimits
from runners.telemetry.watchdog import Watchdog
from tests.support.fake_decoder import EOS, FakeDecoder
from tests.support.waiting import wait_until

TIMEOUT_S = 30


@dataclass(slots=True)
class Clock:
    """A clock that stands still."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(slots=True)
class StuckDecoder(FakeDecoder):
    """Blocks in a prefill until it is released."""

    released: threading.Event = field(default_factory=threading.Event)

    def prefill(self, cache: object, requests: object, first_slot: int) -> torch.Tensor:
        assert self.released.wait(TIMEOUT_S)
        return FakeDecoder.prefill(self, cache, requests, first_slot)  # type: ignore[arg-type]


def test_iterations_within_the_limit_are_in_time() -> None:
    clock = Clock()
    watchdog = Watchdog("the encoder of x", 60, clock)
    for _ in range(3):
        with watchdog.iteration():
            clock.now_s += 60
            assert watchdog.is_in_time()
    clock.now_s += 1000  # idle
    assert watchdog.is_in_time()


def test_a_long_iteration_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watchdog = Watchdog("the decoder of x", 60, clock)
    with watchdog.iteration():
        clock.now_s += 61
        assert [watchdog.is_in_time() for _ in range(3)] == [False] * 3
    assert watchdog.is_in_time()
    assert [(record.levelno, record.args) for record in caplog.records] == [
        (logging.ERROR, ("the decoder of x", 61.0, 60)),
        (logging.WARNING, ("the decoder of x",)),
    ]


def test_a_failed_iteration_has_ended() -> None:
    clock = Clock()
    watchdog = Watchdog("the encoder of x", 60, clock)
    with pytest.raises(ValueError, match="x"), watchdog.iteration():
        raise ValueError("x")
    clock.now_s += 61
    assert watchdog.is_in_time()


def test_a_blocked_scheduler_is_detected_and_recovers() -> None:
    decoder = StuckDecoder()
    scheduler = Scheduler(decoder, "fake", SchedulerLimits(4, 8, 1000, stuck_after_s=0.01))
    (future,) = scheduler.submit([SequenceRequest(torch.zeros(2, 4), (5, 6), max_new_tokens=16)])
    assert scheduler.watchdog.is_in_time()
    scheduler.start()
    wait_until(lambda: not scheduler.watchdog.is_in_time())
    decoder.released.set()
    assert future.result(TIMEOUT_S).sequence.token_ids == (5, 6, EOS)
    wait_until(scheduler.watchdog.is_in_time)
    scheduler.stop()
