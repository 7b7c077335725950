"""Errors that end one sequence and touch no other, and those of a device.

Torch and ONNX Runtime raise errors of a device without classes. Too little memory is recognised by
the message: the caller may retry with less. Whether the device is lost, so that every call fails
until the process restarts, is tried after any error: messages are too many.
"""

import logging
import os

import torch

from wire.runner_messages import FailureCode

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
# of cudaErrorStreamCapture*: a failed capture may leave its stream capturing, which forbids to wait
_CAPTURE = "captur"


class SequenceError(Exception):
    """One sequence failed, alone; the gateway distinguishes failures by `code`."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code: FailureCode = code


def is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def use_device() -> None:
    """Allocate on a GPU that this process has used, and wait; raise torch's error if it is lost."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # no types
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()


def exit_if_device_lost(error: Exception, part: str) -> None:
    """End the process if `part` can no longer use its device; the gateway repeats the calls."""
    try:
        use_device()
    except Exception as failure:
        if is_out_of_memory(failure) or _CAPTURE in str(failure).lower():
            return
        logger.critical(
            "%s lost its GPU, and its process ends to be restarted: %s", part, error, exc_info=error
        )
        logging.shutdown()
        os._exit(EXIT_STATUS)
