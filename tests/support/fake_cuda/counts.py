"""The calls of this process to the fake CUDA runtime, counted; errors that it can be given."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, fields

_runtime = ctypes.CDLL("libcudart.so.13")
_runtime.fake_cuda_launches_of.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts in the order of runtime.c."""

    launches: int
    captured: int
    stray: int
    replays: int
    to_device: int
    to_host: int
    on_device: int
    waits: int
    waits_for_all: int
    events: int
    allocations: int
    frees: int
    pinned: int
    captures: int
    illegal: int
    num_bytes: int


def counts() -> Counts:
    """Return the counts since the start of the process."""
    found = (ctypes.c_long * len(fields(Counts)))()
    _runtime.fake_cuda_counts(found)
    return Counts(*found)


def counted(work: Callable[[], object]) -> dict[str, int]:
    """Run `work`; return the counts that have changed, by how much."""
    before = counts()
    work()
    after = counts()
    changes = {}
    for each in fields(Counts):
        change = getattr(after, each.name) - getattr(before, each.name)
        if change:
            changes[each.name] = change
    return changes


def launches_of(part: str) -> int:
    """Return the number of launches of kernels and library calls with `part` in their names."""
    return int(_runtime.fake_cuda_launches_of(part.encode()))


def fail_allocations(first: int, num: int) -> None:
    """Fail `num` allocations of device memory; `first` is 1 for the next one."""
    _runtime.fake_cuda_fail_allocations(ctypes.c_long(first), ctypes.c_long(num))


def fail_library_calls(status: int, num: int) -> None:
    """Fail the next `num` launches of cuBLAS or cuDNN with `status`."""
    _runtime.fake_cuda_fail_library(status, num)


def lose_device(code: int) -> None:
    """Fail every call with `code` until the process ends."""
    _runtime.fake_cuda_lose_device(code)
