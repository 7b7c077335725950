"""How much memory the kernel really holds for what the gateway shares."""

import os

from runners.shared_arrays import MEMORY_NAME_PREFIX
from service.shared_memory import SharedMemory

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BLOCK_BYTES = 512  # what st_blocks counts in


def allocated(memory: SharedMemory) -> int:
    """Return the bytes that a memory takes."""
    return os.fstat(memory.fd).st_blocks * _BLOCK_BYTES


def shared_by(pid: int) -> dict[str, int]:
    """Return the bytes that each of our memories takes that a process has open, by name."""
    folder = f"/proc/{pid}/fd"
    found = {}
    for fd in os.listdir(folder):
        try:
            name, size = os.readlink(f"{folder}/{fd}"), os.stat(f"{folder}/{fd}").st_blocks * _BLOCK_BYTES
        except FileNotFoundError:  # closed in this moment
            continue
        if name.startswith(f"/memfd:{MEMORY_NAME_PREFIX}"):
            found[name] = size
    return found
