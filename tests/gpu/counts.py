"""The fake runtime's counts."""

import ctypes
from collections.abc import Callable

# in the order of runtime.c
_COUNTS = (
    *("launches", "captured", "stray", "replays", "preferred", "to_device", "to_host"),
    *("on_device", "waits", "waits_for_all", "events", "allocations", "frees", "pinned"),
    *("captures", "illegal", "races", "pageable", "num_bytes"),
)


def fake_runtime() -> ctypes.CDLL:
    return ctypes.CDLL("libcudart.so.13")  # that of torch


def counts() -> dict[str, int]:
    """Return the counts since the start of the process."""
    numbers = (ctypes.c_long * len(_COUNTS))()
    fake_runtime().fake_cuda_counts(numbers)
    return dict(zip(_COUNTS, numbers, strict=True))


def counted(work: Callable[[], object]) -> dict[str, int]:
    """Return what changes while `work` runs, by name; 0 is left out."""
    before = counts()
    work()
    changes = {name: after - before[name] for name, after in counts().items()}
    return {name: change for name, change in changes.items() if change}
