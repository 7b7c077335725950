"""Arrays in memory that another process of the same host owns: opened by a message, read or written, closed.

Every call opens the memory anew through /proc, which takes microseconds: a runner keeps nothing of a gateway that died.
/proc/<pid>/fd/<fd> needs the same user and the same PID namespace. The memory's name, with random bits of its own, says
that it is that memory and not what another host or a later process has under these numbers.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.messages import AnyArray, Array, MemoryAddress, SharedArray

MEMORY_NAME_PREFIX = "diptych-"


class MemoryUnreachable(Exception):
    """The memory is on another host, in another container or another user's, or its owner has ended."""


def can_open(address: MemoryAddress) -> bool:
    """Say whether this process can read and write the memory at `address`."""
    try:
        with _opened(address):
            return True
    except MemoryUnreachable:
        return False


def view(message: AnyArray) -> NDArray[Any]:
    """Return the message's array, mapped and not copied where it is shared; raise `MemoryUnreachable`.

    What the owner frees reads as zeros. What is written into the array is seen by nobody else.
    """
    if isinstance(message, Array):
        return message.numpy().copy()
    with _opened(message.memory) as fd:
        if os.fstat(fd).st_size < message.offset + message.num_bytes:
            raise MemoryUnreachable("the memory ends before the array")
        mapped = mmap.mmap(fd, message.num_bytes, access=mmap.ACCESS_COPY, offset=message.offset)
    return np.frombuffer(mapped, message.dtype).reshape(message.shape)


def place(array: NDArray[Any], target: SharedArray | None) -> AnyArray:
    """Return a message for `array`: in the memory of `target`, or with its own bytes; raise `MemoryUnreachable`."""
    if target is None:
        return Array.of(array)
    if (array.shape, array.dtype.name) != (target.shape, target.dtype):
        raise ValueError(f"{array.dtype.name} {array.shape} is not {target.dtype} {target.shape}")
    with _opened(target.memory) as fd:
        _write(fd, target.offset, np.ascontiguousarray(array))
    return target


@contextmanager
def _opened(address: MemoryAddress) -> Iterator[int]:
    path = f"/proc/{address.pid}/fd/{address.fd}"
    try:
        if not address.name.startswith(MEMORY_NAME_PREFIX) or os.readlink(path) != f"/memfd:{address.name} (deleted)":
            raise MemoryUnreachable(f"{path} is not the memory {address.name}")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MemoryUnreachable(f"{path} cannot be opened: {error}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, offset: int, array: NDArray[Any]) -> None:
    data = array.reshape(-1).view(np.uint8).data
    while data:
        num_written = os.pwrite(fd, data, offset)
        data, offset = data[num_written:], offset + num_written
