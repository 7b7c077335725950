"""How late the event loop runs what is due, and which request made it late.

A coroutine that is due every `_EVERY_S` measures by how much it runs late. A thread notices that
the loop is late while it is, and notes the task that holds it with its line. A thread that holds
the interpreter's lock stops the noticing, too: then the requests that have work in threads are
named. It knows requests by the names of their tasks only.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from service.telemetry.metrics import EVENT_LOOP_LAG_SECONDS

logger = logging.getLogger(__name__)

_EVERY_S = 0.05
_LATE_S = 0.1  # more than this is logged: it is the promise to other requests
_LOG_EVERY_S = 1.0
_LOG_BUSY_EVERY_S = 60.0  # a busy machine: no request is the cause
_MAX_NAMED = 5
_NO_WORK = "no request had work; the machine may be busy"
in_threads: list[str] = []  # the tasks that wait for work in a thread, by name
_ROOT = Path(__file__).parents[2]


class LoopWatch:
    """Watches the running loop from `start` to `stop`."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._suspect = ""
        self._logged_s = -_LOG_BUSY_EVERY_S
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start to measure the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._due_s = self._now() + _EVERY_S
        self._measuring = asyncio.create_task(self._measure())
        of_loop = (threading.get_ident(),)
        self._thread = threading.Thread(
            target=self._observe, args=of_loop, name="loop-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._measuring.cancel()

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            now_s = self._now()
            lag_s = max(0.0, now_s - self._due_s)
            EVENT_LOOP_LAG_SECONDS.observe(lag_s)
            if lag_s > _LATE_S:
                names = [f"thread of {name}" for name in sorted(in_threads)]
                work = self._suspect or ", ".join(names[:_MAX_NAMED])
                pause_s = _LOG_EVERY_S if work else _LOG_BUSY_EVERY_S
                if now_s - self._logged_s > pause_s:
                    self._logged_s = now_s
                    logger.warning("the event loop was late by %.2f s: %s", lag_s, work or _NO_WORK)
            self._suspect = ""
            self._due_s = self._now() + _EVERY_S

    def _observe(self, loop_thread: int) -> None:
        """Note what holds the loop while it is late; runs in a thread."""
        while not self._stopped.wait(_EVERY_S):
            is_late = self._now() - self._due_s > _LATE_S / 2
            task = asyncio.current_task(self._loop)
            frame = sys._current_frames().get(loop_thread)
            if is_late and not self._suspect and task is not None and frame is not None:
                self._suspect = f"{task.get_name()} at {_own_line(frame)}"


def _own_line(frame: FrameType | None) -> str:
    """Return the innermost line of this project's code: file, number, function."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_ROOT) and "site-packages" not in path.parts:
            return f"{path.relative_to(_ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "a line of another package"
