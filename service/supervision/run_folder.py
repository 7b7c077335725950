"""The folder that one start of the service writes into: sockets, metrics, bodies on their way. It lies in memory.

A disk that is full or read-only is so no matter of a running service; prometheus_client's mapped files would kill it
with SIGBUS. The folder is locked as long as its owner lives, however it ends: the next start removes what is left of
others.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MEMORY = Path("/dev/shm")
_PREFIX = "diptych-"


@contextmanager
def run_folder() -> Iterator[Path]:
    """Yield a new folder in memory, on the disk for temporary files where there is no such memory; remove it after."""
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _remove_left_over(parent)
    # Nobody else looks at the folder under its first name, before it is locked.
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


def _remove_left_over(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*/"):
        with suppress(OSError):  # another user's, or in use
            fd = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(fd)
