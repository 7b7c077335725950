"""Each check in a process of its own: a hang, a crash or an exit costs only its own line.

A server that has imported the checks, and has not touched the GPU, forks their processes. What they
print, and the stacks of a check that exceeds its limit, become the logs of their lines.
"""

import faulthandler
import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from threading import Thread
from typing import Any

from laboratory.gpu_check.report import Verdict

_STACKS_S = 1.0  # to print them
_GRACE_S = 30.0  # to stop a service
_MAX_LOG_CHARS = 20_000
_context = get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Check:
    """A function that returns a `Verdict`, or ends its process with `status`."""

    name: str
    function: str  # "module:function"
    arguments: tuple[Any, ...] = ()
    model: str = ""
    usual_s: float = 10  # on a fast card: an estimate
    limit_s: float = 180
    status: int = 0


def run(check: Check) -> Verdict:
    """Return the verdict of a check; it misses its aim if its process ends in another way."""
    start_s = time.monotonic()
    with tempfile.NamedTemporaryFile() as log:
        try:
            verdict = _run(check, log.name)
        except (OSError, EOFError) as error:
            verdict = Verdict({"error": repr(error)}, "its process starts", is_met=False)
        text = Path(log.name).read_text(encoding="utf-8", errors="replace")
    return replace(
        verdict,
        check=check.name,
        model=check.model,
        seconds=round(time.monotonic() - start_s, 1),
        log=text[-_MAX_LOG_CHARS:],
    )


def _run(check: Check, log: str) -> Verdict:
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_measure, args=(check, sender, log))
    process.start()
    sender.close()
    verdict = Verdict({}, f"a result in {check.limit_s:.0f} s", is_met=False)
    if check.status:
        verdict = Verdict({}, f"status {check.status}", is_met=True)
    if receiver.poll(check.limit_s + _STACKS_S):
        with suppress(EOFError):  # it ended
            verdict = receiver.recv()
        process.join(_GRACE_S)
    for end in (process.terminate, process.kill):
        if process.is_alive():
            end()
            process.join(_GRACE_S)
    if process.exitcode or check.status:
        measured = verdict.measured | {"status": process.exitcode}
        is_met = verdict.is_met and process.exitcode == check.status
        verdict = replace(verdict, measured=measured, is_met=is_met)
    return verdict


def _measure(check: Check, sender: Connection, log: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    faulthandler.dump_traceback_later(check.limit_s)
    Thread(target=_end_with_parent, daemon=True).start()
    sender.send(resolve_name(check.function)(*check.arguments))


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
