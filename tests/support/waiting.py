"""Waiting until another thread or process has done something."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import Process

_STOP_TIMEOUT_S = 60


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
    is_ready: Callable[[], object], process: Process, log: Path, timeout_s: float = 120
) -> None:
    """Return when the server is ready; fail with its log if it ends or is late."""

    def end_of_log() -> str:
        return log.read_text(encoding="utf-8")[-4000:]

    wait_until(
        lambda: is_ready() or process.poll() is not None,
        timeout_s,
        end_of_log,
        pause_s=0.03,  # the start needs the core
    )
    assert process.poll() is None, end_of_log()


@contextmanager
def repeating(call: Callable[[], object], pause_s: float = 0.05) -> Iterator[Callable[[int], None]]:
    """Repeat a call in a thread until the block ends; yield a function that waits for more."""
    ended = threading.Event()
    results: list[object] = []

    def repeat() -> None:
        while not ended.wait(pause_s):
            results.append(call())

    def wait_for_more(count: int) -> None:
        target = len(results) + count
        wait_until(lambda: len(results) >= target or repetition.done())

    with ThreadPoolExecutor(1) as threads:
        repetition = threads.submit(repeat)
        try:
            yield wait_for_more
        finally:
            ended.set()
            repetition.result()


@contextmanager
def running_program(
    command: Sequence[str],
    is_ready: Callable[[], object],
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> "Iterator[subprocess.Popen[bytes]]":
    variables = {**os.environ, **(environment or {})}
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
    try:
        wait_until_ready(is_ready, process, log)
        yield process
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
