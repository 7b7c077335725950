"""The gateway's memory that its runners on the same host read and write: pixels on their way, image features.

It is a memfd: it has no name in any folder, so nothing is left behind by whichever process dies, and the kernel takes
it back with the gateway. Blocks lie one after the other and no place is given out twice, so that one who still writes
into a block that was freed harms no other. A freed block's pages go back to the kernel at once: the file is a long one
with few pages.
"""

import ctypes
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

from numpy.typing import NDArray

from runners.messages import MemoryAddress, SharedArray
from runners.shared_arrays import MEMORY_NAME_PREFIX, place, view

# Python has only posix_fallocate, which cannot free. Source of the numbers: linux/falloc.h.
_LIBC = ctypes.CDLL(None, use_errno=True)
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Block:
    """Room for one array. Its pages are freed when the last reference to it goes, and not before."""

    def __init__(self, message: SharedArray, free: Callable[[], None]) -> None:
        self.message = message
        weakref.finalize(self, free).atexit = False  # at the end the kernel frees them all

    @property
    def num_bytes(self) -> int:
        """Bytes of the pages that it takes."""
        return _whole_pages(self.message.num_bytes)

    def write(self, array: NDArray[Any]) -> None:
        """Fill the block with `array`, which has its shape and dtype."""
        place(array, self.message)

    def read(self) -> NDArray[Any]:
        """Return the array in the block, as it is now."""
        return view(self.message)


class SharedMemory:
    """Blocks that runners reach by messages. It lasts as long as one of them, or its owner, refers to it."""

    def __init__(self) -> None:
        name = MEMORY_NAME_PREFIX + secrets.token_hex(16)
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd).atexit = False
        self.address = MemoryAddress(pid=os.getpid(), fd=self.fd, name=name)
        self._changed = threading.RLock()  # a block may be freed in any thread, even while another is reserved
        self._end = 0
        self._offsets: dict[int, None] = {}  # of the blocks in use, as dicts are ordered the lowest first

    @classmethod
    def create(cls) -> Self | None:
        """Return a new memory, or None where this system has no memfd."""
        return cls() if hasattr(os, "memfd_create") else None

    def reserve(self, shape: tuple[int, ...], dtype: str) -> Block:
        """Return a block for an array; it takes memory once it is written."""
        with self._changed:
            message = SharedArray(memory=self.address, offset=self._end, shape=shape, dtype=dtype)
            self._end += _whole_pages(message.num_bytes)
            self._offsets[message.offset] = None
        return Block(message, lambda: self._free(message))

    def _free(self, message: SharedArray) -> None:
        with self._changed:
            is_lowest = next(iter(self._offsets)) == message.offset
            del self._offsets[message.offset]
            lowest = next(iter(self._offsets), self._end)
        _punch_hole(self.fd, message.offset, _whole_pages(message.num_bytes))
        if is_lowest:  # below the new lowest nothing is in use, but late writers may have left pages
            _punch_hole(self.fd, 0, lowest)


def _whole_pages(num_bytes: int) -> int:
    return max(1, -(-num_bytes // _PAGE_BYTES)) * _PAGE_BYTES


def _punch_hole(fd: int, offset: int, num_bytes: int) -> None:
    flags = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _LIBC.fallocate(fd, flags, ctypes.c_int64(offset), ctypes.c_int64(num_bytes)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
