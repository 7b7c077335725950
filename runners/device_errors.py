"""Device errors of torch and ONNX Runtime, recognised by message: they have no classes.

out of memory   the caller may retry with less
lost            the CUDA context is unusable: every call fails until the process restarts
"""

import logging
import os

logger = logging.getLogger(__name__)

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h

# Sources: onnxruntime/core/framework/bfc_arena.cc, and the messages of CUDA, cuBLAS and the C++
# library.
_OUT_OF_MEMORY = (
    "failed to allocate memory",
    "is smaller than requested bytes",  # an arena with a limit
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "cublas_status_alloc_failed",
)
# The errors of which the CUDA Runtime API says that "the process must be terminated and relaunched"
# (cudaError).
_LOST = (
    "uncorrectable ecc error",
    "an illegal memory access was encountered",
    "the launch timed out and was terminated",
    "device-side assert triggered",
    "hardware stack error",
    "an illegal instruction was encountered",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "unspecified launch failure",
)


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or _has_sign(error, _OUT_OF_MEMORY)


def exit_if_device_lost(error: Exception, part: str) -> None:
    """End the process at once if `error` means that `part` can no longer use its device.

    The calls in flight are not answered: the gateway repeats them after the runner's restart.
    """
    if _has_sign(error, _LOST):
        logger.critical(
            "%s lost its GPU, and its process ends to be restarted: %s", part, error, exc_info=error
        )
        logging.shutdown()
        os._exit(EXIT_STATUS)


def _has_sign(error: Exception, signs: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in signs)
