"""The detection of stuck iterations and starts, and the end of their process."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

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
STUCK_EXIT_STATUS = 1
ITERATES = """
import ctypes, sys, time
from runners.watchdog import Watchdog, end_process_when_stuck

def work():
    watchdog.started_s = time.monotonic()
    exec(sys.argv[1])
    watchdog.started_s = None

watchdog = Watchdog("the decoder of x", 0.5)
end_process_when_stuck([watchdog], float(sys.argv[2]))
start_s = time.process_time()
for _ in range(3):
    work()
print("went on", "idle" if time.process_time() - start_s < 0.5 else "busy")
"""
STARTS = """
import ctypes, sys, time
from runners.watchdog import bounded_start

def work():
    exec(sys.argv[1])

with bounded_start(float(sys.argv[2])):
    work()
time.sleep(0.7)
print("answers")
"""


def run(program: str, work: str, limit_s: float) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, work, str(limit_s)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_iterations_are_in_time_up_to_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog("the decoder of x", 60)
    watchdog.started_s = time.monotonic() - 50
    watchdog.report()
    assert watchdog.is_in_time()
    watchdog.started_s = time.monotonic() - 61
    for _ in range(3):
        watchdog.report()
    assert not watchdog.is_in_time()
    watchdog.started_s = None
    watchdog.report()
    assert watchdog.is_in_time()
    (record,) = caplog.records
    late = "the decoder of x is stuck: an iteration has taken 61 s so far; at most 60 s are allowed"
    assert (record.levelno, record.getMessage()) == (logging.ERROR, late)


def test_a_blocked_scheduler_is_detected_and_recovers() -> None:
    released = threading.Event()

    def wait(_token_ids: Sequence[int]) -> None:
        assert released.wait(TIMEOUT_S)

    scheduler = Scheduler(FakeDecoder(), "fake", SchedulerLimits(4, 8, 1000, stuck_after_s=0.01))
    request = SequenceRequest(torch.zeros(2, 4), (5, 6), max_new_tokens=16, on_tokens=wait)
    (future,) = scheduler.submit([request])
    assert scheduler.watchdog.is_in_time()
    scheduler.start()
    wait_until(lambda: not scheduler.watchdog.is_in_time())
    released.set()
    assert future.result(TIMEOUT_S).sequence.token_ids == (5, 6, EOS)
    wait_until(lambda: scheduler.watchdog.started_s is None)
    scheduler.stop()


@pytest.mark.parametrize("program", [ITERATES, STARTS], ids=["iteration", "start"])
@pytest.mark.parametrize("work", ["time.sleep(100)", "ctypes.PyDLL(None).sleep(100)"])
def test_a_stuck_process_ends_and_shows_its_stack(program: str, work: str) -> None:
    ended = run(program, work, 0.5)  # the second work holds the GIL
    assert (ended.returncode, ended.stdout) == (STUCK_EXIT_STATUS, "")
    assert " in work\n" in ended.stderr


def test_a_process_that_is_late_or_in_time_goes_on() -> None:
    late = run(ITERATES, "while not watchdog._is_reported: time.sleep(0.01)", 60)
    assert (late.returncode, late.stdout) == (0, "went on idle\n")
    assert "the decoder of x is stuck" in late.stderr
    assert run(STARTS, "pass", 0.5).stdout == "answers\n"
