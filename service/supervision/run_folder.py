"""The one folder that a running service writes to: sockets, metrics, request bodies.

It is in memory where the host has a folder for that.

A full or read-only disk therefore does not affect the service; with prometheus_client's mapped
files it would die of SIGBUS. The owner holds a lock on its folder until it ends, however it ends;
the next start removes unlocked folders.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wire.host import memory_folder

_PREFIX = "diptych-"


@contextmanager
def run_folder() -> Iterator[Path]:
    """Yield a new folder in memory or the temporary folder; remove it afterwards."""
    parent = memory_folder()
    # folders of killed supervisors
    for abandoned in parent.glob(f"{_PREFIX}*/"):
        with suppress(OSError):  # another user's, or in use
            abandoned_fd = os.open(abandoned, os.O_RDONLY)
            try:
                fcntl.flock(abandoned_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(abandoned)
            finally:
                os.close(abandoned_fd)
    # Other starts ignore its first name, under which it is not yet locked.
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=parent))
    folder = parent / unlocked.name.removeprefix(".")
    fd = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    unlocked.rename(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)
