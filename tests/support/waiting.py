"""Waiting until another thread or process has done something."""

import time
from collections.abc import Callable
from pathlib import Path

from tests.support.processes import Process


def wait_until(
    condition: Callable[[], object],
    timeout_s: float = 120,
    describe: Callable[[], object] = str,
    pause_s: float = 0.005,
) -> None:
    """Return when `condition` holds; fail after `timeout_s` with what `describe` returns."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, describe()
        time.sleep(pause_s)


def wait_until_ready(
    is_ready: Callable[[], bool], process: Process, log: Path, timeout_s: float = 120
) -> None:
    """Return when the server of `process` is ready; fail with its log if it ends, or is not ready
    in time.
    """
    wait_until(
        lambda: is_ready() or process.poll() is not None,
        timeout_s,
        lambda: _end(log),
        pause_s=0.03,  # the start needs the core
    )
    assert process.poll() is None, _end(log)


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8")[-4000:]
