"""Where the two parts of a model run: on the CPU, or on an NVIDIA card where machine and library have one.

Asked without loading torch, so that the gateway, which has none, gets the answer that the runners get.
"""

import ctypes
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

import onnxruntime

from runners.artifacts import Device

DeviceSetting = Literal["auto", "cpu", "cuda"]

CUDA_PROVIDER = "CUDAExecutionProvider"


def encoder_device(setting: DeviceSetting) -> Device:
    """Return where ONNX Runtime runs the encoders."""
    return _device(setting, CUDA_PROVIDER in onnxruntime.get_available_providers() and has_cuda_card())


def decoder_device(setting: DeviceSetting) -> Device:
    """Return where torch runs the decoders; its builds without CUDA say so in their version."""
    return _device(setting, "+cpu" not in version("torch") and has_cuda_card())


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
