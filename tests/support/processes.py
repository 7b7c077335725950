"""Processes of a running service, and whether a port is open."""

import socket
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
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def image_decoders(gateway: int | None = None) -> list[psutil.Process]:
    """Return the processes that decode images for a gateway, by default for this process."""
    return [child for child in psutil.Process(gateway).children() if _decodes(child)]


def _decodes(process: psutil.Process) -> bool:
    try:
        return "service.images.decoding_program" in process.cmdline()
    except psutil.NoSuchProcess:  # a zombie counts as ended
        return False


def is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as client:
        return client.connect_ex((host, port)) == 0


def run_folder_of(supervisor: int) -> Path:
    links = [fd.readlink() for fd in Path(f"/proc/{supervisor}/fd").iterdir()]
    return next(link for link in links if link.name.startswith("diptych-"))
