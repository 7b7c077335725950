"""Runs offline/command.py as a child, which a signal kills with Ray's processes at every moment."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from tempfile import TemporaryDirectory, gettempdir

import psutil

from wire.host import end_with, process_environment

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
# Of the 107 of a socket's path, 17 are of the run's folder and 64 of Ray in it.
_MAX_FOLDER_BYTES = 26
_END_S = 10.0  # a killed process may wait for a disk or a GPU


def main() -> int:
    """Return the status of the command, or 128 and the number of the signal that ended it."""
    if len(os.fsencode(gettempdir())) > _MAX_FOLDER_BYTES:
        limit = f"{_MAX_FOLDER_BYTES} bytes, for Ray's sockets; set TMPDIR, to /tmp for example"
        print(f"the temporary folder {gettempdir()} has more than {limit}", file=sys.stderr)
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # a second signal is not delivered
    # the session of Ray is in it
    with TemporaryDirectory(prefix="diptych-", ignore_cleanup_errors=True) as folder:
        # Ray's workers stay in the group of the command
        variables = {"TMPDIR": folder, "RAY_process_group_cleanup_enabled": "0"}
        command = subprocess.Popen(
            [sys.executable, "-m", "offline.command", *sys.argv[1:]],
            env=process_environment(os.environ) | variables,
            process_group=0,
            preexec_fn=_begin,
        )
        while (status := command.poll()) is None:
            if (number := signal.sigwait(_SIGNALS)) != signal.SIGCHLD:
                status = -number
                break
        processes = psutil.Process().children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        psutil.wait_procs(processes, _END_S)
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    print(f"\npython -m offline: ended by {name}; the same command resumes", file=sys.stderr)
    return 128 - status


def _begin() -> None:
    end_with(os.getppid())
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    sys.exit(main())
