"""Copies of the host's numbers to a device, which wait for nothing.

A copy from ordinary memory waits until the device has reached it, and so for all queued work. From
pinned memory it is queued; torch reuses that memory only after the copy. Knows no model.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(numbers: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return nested sequences of numbers as a tensor on `device`."""
    return _copy(torch.tensor(numbers, dtype=dtype), device)


def array_to_device(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """Return a tensor of the array's values on `device`; on a CPU it shares their memory."""
    return _copy(torch.from_numpy(np.ascontiguousarray(array)), device)


def array_into(target: Tensor, array: NDArray[Any]) -> None:
    target.copy_(_pinned(torch.from_numpy(array), target.device), non_blocking=True)


def _copy(host: Tensor, device: torch.device | str) -> Tensor:
    return _pinned(host, device).to(device, non_blocking=True)


def _pinned(host: Tensor, device: torch.device | str) -> Tensor:
    return host.pin_memory() if torch.device(device).type == "cuda" else host
