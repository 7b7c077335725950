"""Processes of a running service, read from /proc."""

from pathlib import Path
from typing import Protocol

import psutil


class Process(Protocol):
    """A program that runs, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def image_decoders(gateway: int | None = None) -> list[psutil.Process]:
    """Return the processes that decode images for a gateway, by default for this process."""
    return [each for each in psutil.Process(gateway).children() if _decodes(each)]


def _decodes(process: psutil.Process) -> bool:
    try:
        return "service.images.decoding_program" in process.cmdline()
    except psutil.NoSuchProcess:  # a zombie counts as ended
        return False


def is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_folder_of(supervisor: int) -> Path:
    """Return the folder that a running service writes to."""
    links = [fd.readlink() for fd in Path(f"/proc/{supervisor}/fd").iterdir()]
    return next(link for link in links if link.name.startswith("diptych-"))
