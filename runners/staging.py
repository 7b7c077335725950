"""Copies of the host's numbers to a device, which wait for nothing.

A copy from ordinary memory waits until the device has reached it, and so for all queued work. From
pinned memory it is queued; torch reuses that memory only after the copy. Knows no model.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(numbers: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return nested sequences of numbers as a tensor on `device`."""
    host = torch.tensor(numbers, dtype=dtype)
    if torch.device(device).type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def array_into(target: Tensor, array: NDArray[Any]) -> None:
    host = torch.from_numpy(array)
    if target.is_cuda:
        host = host.pin_memory()
    target.copy_(host, non_blocking=True)
