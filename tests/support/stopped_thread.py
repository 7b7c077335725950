"""One thread of another process, stopped as by a debugger: the others go on, as beside a thread
that is stuck.
"""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import wait_until

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_DETACH = 17  # linux/ptrace.h
_SEIZE = 0x4206
_INTERRUPT = 0x4207
_WALL = 0x40000000  # linux/wait.h: threads too
_SAMPLE_TICKS = 30  # each is 10 ms
_USER_TICKS = 11  # index after the name in /proc/PID/task/TID/stat


def busiest_thread(pid: int) -> int:
    """Return the thread of `pid` that computes most while one of them computes for 0.3 s."""
    before = _user_ticks(pid)

    def gained() -> dict[int, int]:
        return {tid: ticks - before.get(tid, 0) for tid, ticks in _user_ticks(pid).items()}

    wait_until(lambda: max(gained().values()) >= _SAMPLE_TICKS)
    ticks = gained()
    return max(ticks, key=lambda tid: ticks[tid])


def _user_ticks(pid: int) -> dict[int, int]:
    ticks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            ticks[int(task.name)] = int(
                (task / "stat").read_text().rpartition(")")[2].split()[_USER_TICKS]
            )
    return ticks


def stop_thread_until_its_process_ends(tid: int) -> None:
    """Keep the thread `tid` stopped; let it go on, and fail, if its process has not ended in
    time.
    """
    _ptrace(_SEIZE, tid)
    _ptrace(_INTERRUPT, tid)
    os.waitpid(tid, _WALL)  # it has stopped
    try:
        # the process ends once its tracer knows
        wait_until(lambda: os.waitpid(tid, _WALL | os.WNOHANG) != (0, 0))
    except AssertionError:
        _ptrace(_DETACH, tid)
        raise


def _ptrace(request: int, tid: int) -> None:
    if _LIBC.ptrace(request, tid, None, None) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x} of thread {tid}")
