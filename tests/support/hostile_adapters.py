"""Files in the place of an adapter's that would block, mislead or exhaust a careless reader."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import chdir
from pathlib import Path


def _bind(path: Path) -> None:
    # an address may have 107 characters only
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)


SPECIAL_FILES: Mapping[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "socket": _bind,
    "link to itself": lambda path: path.symlink_to(path.name),
}
