"""Where the two parts of a model run: on the CPU, or on an NVIDIA card where machine and library have one.

Asked without loading torch, so that the gateway, which has none, gets the answer that the runners get. And on how many
threads of the CPU.
"""

import ctypes
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

from runners.artifacts.manifest import Device

DeviceSetting = Literal["auto", "cpu", "cuda"]

CUDA_PROVIDER = "CUDAExecutionProvider"
_WIDE = 512  # hidden size; the embedded models have 128 and 192, the released ones 768 and more


def encoder_device(setting: DeviceSetting) -> Device:
    """Return where ONNX Runtime runs the encoders."""
    return _device(setting, has_cuda_card() and _has_cuda_provider())


def _has_cuda_provider() -> bool:
    import onnxruntime  # starts a thread and takes 15 MB: not where the driver has no card

    return CUDA_PROVIDER in onnxruntime.get_available_providers()


def decoder_device(setting: DeviceSetting) -> Device:
    """Return where torch runs the decoders; its builds without CUDA say so in their version."""
    return _device(setting, "+cpu" not in version("torch") and has_cuda_card())


def num_threads(setting: int, hidden_size: int, num_cores: int) -> int:
    """Return the threads of a part of a model; 0 leaves it to its width.

    The products of a narrow model are over before a second thread has begun: more threads make it slower.
    """
    return setting or (num_cores if hidden_size >= _WIDE else 1)


def may_have_cuda(setting: DeviceSetting) -> bool:
    """Return True where a card may be used, without asking the driver: a process that asked it cannot be forked."""
    if setting != "auto":
        return setting == "cuda"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def has_cuda_card(load_library: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Say whether NVIDIA's driver is here and shows this process a card (CUDA_VISIBLE_DEVICES hides them)."""
    try:
        driver = load_library("libcuda.so.1")
    except OSError:
        return False
    num_cards = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(num_cards)) != 0:
        return False
    return num_cards.value > 0


def _device(setting: DeviceSetting, has_cuda: bool) -> Device:
    """Return the device; one that is set but not there fails where it is used, with the library's own message."""
    if setting == "auto":
        return "cuda" if has_cuda else "cpu"
    return setting
