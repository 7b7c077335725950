import logging
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from runners.options import SchedulerLimits
from runners.watchdog import Watchdog
from tests.support.export_cli import ROOT
from tests.support.fake_decoder import EOS, FakeDecoder
from tests.support.waiting import wait_until

TIMEOUT_S = 120
SLEEPS = {"without GIL": "time.sleep(100)", "with GIL": "ctypes.PyDLL(None).sleep(100)"}
STUCK_EXIT_STATUS = 1
RUNS_AN_ITERATION = """
import ctypes, sys, time
from runners.watchdog import Watchdog, end_process_when_stuck

def iterate():
    with watchdog.iteration():
        exec(sys.argv[1])

watchdog = Watchdog("the decoder of x", 0.5)
end_process_when_stuck([watchdog], float(sys.argv[2]))
start_s = time.process_time()
for _ in range(3):
    iterate()
print("went on", "idle" if time.process_time() - start_s < 0.5 else "busy")
"""

STARTS = """
import ctypes, sys, time
from runners.watchdog import bounded_start

def load():
    exec(sys.argv[1])

with bounded_start(0.5):
    load()
time.sleep(0.7)
print("answers")
"""


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

    def prefill(self, *arguments: Any) -> torch.Tensor:
        assert self.released.wait(TIMEOUT_S)
        return FakeDecoder.prefill(self, *arguments)


def test_iterations_within_the_limit_are_in_time() -> None:
    clock = Clock()
    watchdog = Watchdog("the encoder of x", 60, clock)
    for _ in range(3):
        with watchdog.iteration():
            clock.now_s += 60
            assert watchdog.is_in_time()
    clock.now_s += 1000  # idle
    assert watchdog.is_in_time()


def test_a_long_iteration_is_logged_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    watchdog = Watchdog("the decoder of x", 60, clock)
    with watchdog.iteration():
        clock.now_s += 61
        for _ in range(3):
            watchdog.report()
    watchdog.report()
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


def starting(work: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", STARTS, work]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def iterating(work: str, limit_s: float) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", RUNS_AN_ITERATION, work, str(limit_s)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.parametrize("work", SLEEPS.values(), ids=SLEEPS)
def test_a_process_with_a_stuck_thread_ends_and_shows_its_stack(work: str) -> None:
    ended = iterating(work, 0.5)
    assert (ended.returncode, ended.stdout) == (STUCK_EXIT_STATUS, "")
    assert " in iterate\n" in ended.stderr


def test_a_process_whose_iteration_ends_late_goes_on() -> None:
    late = iterating("while not watchdog._is_reported: time.sleep(0.01)", 60)
    assert (late.returncode, late.stdout) == (0, "went on idle\n")
    assert "the decoder of x is stuck" in late.stderr


@pytest.mark.parametrize("work", SLEEPS.values(), ids=SLEEPS)
def test_a_start_that_hangs_ends_and_shows_its_stack(work: str) -> None:
    ended = starting(work)
    assert (ended.returncode, ended.stdout) == (STUCK_EXIT_STATUS, "")
    assert " in load\n" in ended.stderr


def test_after_a_start_in_time_the_process_goes_on() -> None:
    assert starting("pass").stdout == "answers\n"
