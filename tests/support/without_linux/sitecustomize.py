"""Removes what Linux has and macOS has not: Python imports it first, where it is on PYTHONPATH."""

import os
import sys
from typing import Any

_FUNCTIONS = ("fork", "memfd_create", "pidfd_open", "posix_fallocate", "sched_getaffinity")
_FOLDERS = ("/dev/shm", "/proc")
_EVENTS = ("open", "os.listdir", "os.scandir")


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and str(arguments[0]).startswith(_FOLDERS):
        raise FileNotFoundError(2, "this test has no such folder", arguments[0])


for _name in _FUNCTIONS:
    delattr(os, _name)
sys.addaudithook(_refuse)
