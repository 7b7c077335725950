"""The device of encoder and decoder, and their CPU threads.

A device is found without torch, so that the gateway, which lacks it, agrees with the runners.
"""

import ctypes
import logging
import os
import re
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from wire.artifacts.manifest import Device

logger = logging.getLogger(__name__)

DeviceSetting = Literal["auto", "cpu", "cuda"]
EncoderProvider = Literal["auto", "cuda", "tensorrt"]

# major compute capabilities in the wheel of onnxruntime-gpu 1.31.1, which has no PTX
_KERNELS = (7, 8, 9, 12)
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_MIN_CUDA = 13000  # cuDriverGetVersion; torch and onnxruntime-gpu are built for it
_WIDE = 512  # hidden size


def model_device(pair: str) -> tuple[str, DeviceSetting, int | None]:
    """Parse `MODEL=cpu`, `MODEL=cuda` or `MODEL=cuda:INDEX`; raise `ValueError`."""
    match = re.fullmatch(r"([^=]+)=(?:(cpu|cuda)|cuda:(\d{1,3}))", pair)
    if match is None:
        raise ValueError(f"{pair!r} must be MODEL=cpu, MODEL=cuda or MODEL=cuda:INDEX")
    model_id, device, gpu = match.groups()
    return model_id, "cpu" if device == "cpu" else "cuda", None if gpu is None else int(gpu)


def encoder_device(setting: DeviceSetting) -> Device:
    """Return the device of the encoder, which ONNX Runtime must support."""
    if setting != "auto":
        return setting  # a missing one fails at its first use, with the library's message
    return "cuda" if has_cuda_card() and has_cuda_provider() else "cpu"


def decoder_device(setting: DeviceSetting) -> Device:
    """Return the device of the decoder, which torch must support."""
    if setting != "auto":
        return setting
    return "cuda" if has_cuda_torch() and has_cuda_card() else "cpu"


def has_cuda_provider() -> bool:
    """Return True if ONNX Runtime has a CUDA provider that loads; log a missing library."""
    try:
        _load_provider("cuda")
    except OSError as error:
        logger.warning("encoders run on the CPU: ONNX Runtime's provider does not load: %s", error)
        return False
    return True


def _load_provider(name: Literal["cuda", "tensorrt"]) -> None:
    """Load a provider of ONNX Runtime and the libraries that it needs; raise `OSError`."""
    import onnxruntime  # starts a thread and takes 15 MB: not where the driver has no card

    onnxruntime.preload_dlls()
    if name == "tensorrt":
        with suppress(ImportError):  # another installation is on the library path
            import_module("tensorrt_libs")  # of tensorrt-cu13-libs, loads its libraries
    folder = Path(onnxruntime.__file__).parent / "capi"
    for part in ("shared", name):
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{part}.so"), ctypes.RTLD_GLOBAL)


def choose_provider(setting: EncoderProvider, capability: tuple[int, int]) -> EncoderProvider:
    """Return ONNX Runtime's provider on a GPU of this compute capability; raise `RuntimeError`."""
    major, minor = capability
    if setting != "tensorrt" and major in _KERNELS and capability >= (7, 5):
        return "cuda"
    problem = f"CUDA has kernels for capabilities 7.5, 8, 9 and 12, the GPU's is {major}.{minor}"
    if setting != "cuda":
        try:
            _load_provider("tensorrt")
            return "tensorrt"
        except OSError as error:
            problem += f"; TensorRT does not load: {error}"
    raise RuntimeError(
        f"encoders do not run with DIPTYCH_ENCODER_PROVIDER={setting}: {problem}; install"
        " tensorrt-cu13-libs==10.16.1.11, set another provider, or DIPTYCH_DEVICE=cpu"
    )


def has_cuda_torch(paths: Sequence[str] | None = None) -> bool:
    """Return True if torch was built with CUDA; `paths` replaces `sys.path`.

    Not every version of a build without CUDA ends in +cpu: PyPI's for AArch64 does not.
    """
    spec = PathFinder.find_spec("torch", paths)
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists()


def num_threads(setting: int, hidden_size: int, num_cores: int) -> int:
    """Return the number of threads of encoder or decoder.

    `setting` 0 means all cores, but one thread for narrow models: their matrix products take less
    time than starting a second thread.
    """
    return setting or (num_cores if hidden_size >= _WIDE else 1)


def may_have_cuda(setting: DeviceSetting) -> bool:
    """Return True if a GPU may be used; the driver is not initialised, as that prevents forks."""
    if setting != "auto":
        return setting == "cuda"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def select_gpu(index: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make GPU `index`, of those that this process sees, its only one.

    Only before the driver is initialised. Raise `RuntimeError` if it sees too few.
    """
    visible = environment.get(_VISIBLE)
    if visible is None:
        environment[_VISIBLE] = str(index)
        return
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if index >= len(gpus):
        raise RuntimeError(f"cuda:{index} is requested, but {_VISIBLE} is {visible}")
    environment[_VISIBLE] = gpus[index]


@cache
def has_cuda_card(load_library: Callable[[str], Any] = ctypes.CDLL) -> bool:
    """Return True if NVIDIA's driver shows a GPU that CUDA_VISIBLE_DEVICES does not hide, and is
    recent enough; log that it is not.
    """
    try:
        driver = load_library("libcuda.so.1")
    except OSError:
        return False
    num_gpus = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(num_gpus)) != 0:
        return False
    if num_gpus.value == 0:
        return False
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value >= _MIN_CUDA:
        return True
    message = "the models run on the CPU: NVIDIA's driver is for CUDA %d.%d; install 580 or later"
    logger.warning(message, version.value // 1000, version.value % 1000 // 10)
    return False
