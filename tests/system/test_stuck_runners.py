"""A runner whose decoder or start hangs is restarted; its stream continues."""

import ctypes
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil

from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, forked_service, parse_events
from tests.support.waiting import repeating, wait_until
from wire.artifacts.manifest import MANIFEST_FILE

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
LONG: dict[str, Any] = {"task": "captioning", "max_new_tokens": "200"}

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_SEIZE = 0x4206  # linux/ptrace.h
_INTERRUPT = 0x4207
_WALL = 0x40000000  # linux/wait.h: threads too


def busiest_thread(pid: int) -> int:
    """Return the thread of `pid` that computes most while one of them computes for 0.3 s."""
    process = psutil.Process(pid)
    before_s = {thread.id: thread.user_time for thread in process.threads()}

    def durations_s() -> dict[int, float]:
        times_s = {thread.id: thread.user_time for thread in process.threads()}
        return {tid: time_s - before_s.get(tid, 0) for tid, time_s in times_s.items()}

    wait_until(lambda: max(durations_s().values()) >= 0.3)
    return max((duration_s, tid) for tid, duration_s in durations_s().items())[1]


def stop_thread_until_its_process_ends(tid: int) -> None:
    _ptrace(_SEIZE, tid)
    _ptrace(_INTERRUPT, tid)
    os.waitpid(tid, _WALL)  # it has stopped
    # the process ends once its tracer knows
    wait_until(lambda: os.waitpid(tid, _WALL | os.WNOHANG) != (0, 0))


def _ptrace(request: int, tid: int) -> None:
    if _LIBC.ptrace(request, tid, None, None) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace request {request:#x} of thread {tid}")


def events_from_a_stuck_decoder(service: RunningService, pid: int) -> list[tuple[str, Any]]:
    """Stop the decoder's thread of a process, not the process, while a stream is read."""
    # however late the stream is read, the decoder has work
    with repeating(lambda: service.predict(**LONG), 0) as wait_for_more:
        wait_for_more(1)  # the image is encoded
        decoder_thread = busiest_thread(pid)
        with service.chunks(**LONG) as chunks:
            first = next(chunks)
            stop_thread_until_its_process_ends(decoder_thread)
            return parse_events(first + "".join(chunks))


def test_stuck_decoder_is_restarted(endless: ModelStore, tmp_path: Path) -> None:
    """Its stream continues."""
    part = f"{PALIGEMMA}-runner"
    log = tmp_path / "service.log"
    settings = {"DIPTYCH_STUCK_AFTER_S": "2", "DIPTYCH_MODELS": PALIGEMMA}
    with forked_service(endless.home, log, **settings) as service:
        stuck = service.parts()[part]
        events = events_from_a_stuck_decoder(service, stuck)
        assert events[-1][1]["usage"]["generated_tokens"] == 200
        service.wait_until_ready()
        assert service.parts()[part] != stuck
        assert service.predict(task="ocr").status_code == 200
    assert "Timeout (0:00:02)!" in log.read_text()  # above the stacks
    assert f"{part} (process {stuck}) ended with status 1 and is restarted" in log.read_text()


def test_start_that_hangs_is_repeated(exported: ModelStore, tmp_path: Path) -> None:
    """The manifest becomes a FIFO after the checks of the start: the next runner waits for its
    writer.
    """
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    log = tmp_path / "service.log"
    settings = {"DIPTYCH_START_TIMEOUT_S": "10", "DIPTYCH_MODELS": FLORENCE}
    with forked_service(store.home, log, **settings) as service:
        manifest = store.newest(FLORENCE) / MANIFEST_FILE
        content = manifest.read_bytes()
        manifest.unlink()
        os.mkfifo(manifest)
        service.send_signal(f"{FLORENCE}-runner", signal.SIGKILL)
        wait_until(lambda: "ended with status 1 and is restarted" in log.read_text())
        (manifest.parent / "new").write_bytes(content)
        (manifest.parent / "new").rename(manifest)
        service.wait_until_ready()
        assert service.predict(task="ocr").status_code == 200
    assert "Timeout (0:00:10)!" in log.read_text()
    assert "in read_manifest" in log.read_text()
