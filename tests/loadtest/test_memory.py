"""Growth of lives, and kills of runners; tests/system/test_load.py has both under Locust."""

import os
import signal
import subprocess
import sys

import pytest

from loadtest.memory import MemoryWatch

NUM_SAMPLES = 30
KILLER = "import sys; from loadtest.memory import MemoryWatch as W; W(int(sys.argv[1]), 0.1).run()"
SLEEPER = "import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("life", "growths_mb"),
    [
        (range(100, 130), {"runner 1": 10}),
        ([0, *range(100, 109), *[110] * 20], {"runner 1": 0}),  # the warm-up
        ([100, 150, 100] * 10, {"runner 1": 0}),
        (range(100, 110), {"runner 1": 4}),
        (range(100, 109), {}),
    ],
    ids=["leak", "warm-up", "work", "killed", "killed early"],
)
def test_growth_of_a_life(life: range | list[int], growths_mb: dict[str, float]) -> None:
    watch = MemoryWatch(os.getpid())
    for amount_mb in life:
        watch.samples.append({"runner 1": amount_mb})
    watch.samples += [{}] * (NUM_SAMPLES - len(life))
    assert watch.growths_mb() == growths_mb


def test_few_samples_have_no_growth() -> None:
    watch = MemoryWatch(os.getpid())
    watch.samples += [{"runner 1": 100.0}] * 5
    assert watch.growths_mb() == {}


def test_runner_is_killed() -> None:
    runner = [sys.executable, "-c", SLEEPER, "--service-name", "model-runner"]
    killer = [sys.executable, "-c", KILLER, str(os.getpid())]
    with subprocess.Popen(runner) as killed, subprocess.Popen(killer) as watching:
        try:
            assert killed.wait(timeout=60) == -signal.SIGKILL
            assert watching.poll() is None
        finally:
            watching.kill()
            killed.kill()
