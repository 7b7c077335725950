from subprocess import CompletedProcess

import pytest

from runners.errors import EXIT_STATUS, exit_if_device_lost, is_out_of_memory
from tests.support.forked_python import run as run_forked

# The wording of ONNX Runtime, CUDA, cuBLAS and torch.
ARENA = (
    "Error in execution: … bfc_arena.cc:360 … Failed to allocate memory for requested buffer of"
    " size 939524096"
)
LIMITED = (
    "bfc_arena.cc:360 … Available memory of 69123840 is smaller than requested bytes of 84934656"
)
CUDA = "CUDA failure 2: out of memory ; GPU=0 ; hostname=a ; expr=cudaMalloc(&p, size);"
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
UNSUPPORTED = "CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED"
ASSERT = "CUDA error: device-side assert triggered"
UNKNOWN = "CUDA error: unknown error"
EXECUTION = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( … )`"
CAPTURING = "CUDA error: operation not permitted when stream is capturing"
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a"

LOSES_ITS_DEVICE = """
import sys
from runners import errors
from runners.decoder.scheduler import Scheduler
from runners.options import SchedulerLimits
from tests.support.fake_decoder import FakeDecoder
from tests.runners.decoder.test_scheduler import request

class Lost(FakeDecoder):
    def decode_step(self, cache, token_ids):
        raise RuntimeError(sys.argv[1])

def use_device():
    if sys.argv[2]:
        raise RuntimeError(sys.argv[2])

errors.use_device = use_device
limits = SchedulerLimits(num_slots=2, max_waiting=2, max_prefill_tokens=100)
scheduler = Scheduler(Lost(), "fake", limits)
scheduler.start()
(future,) = scheduler.submit([request(5, 5)])
try:
    future.result(30)
except RuntimeError:
    print("failed alone")
"""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(ARENA), True),
        (RuntimeError(LIMITED), True),
        (RuntimeError(CUDA), True),
        (RuntimeError(CUBLAS), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (RuntimeError(UNSUPPORTED), False),
        (RuntimeError(ILLEGAL), False),
        (ValueError("Got invalid dimensions for input: pixels"), False),
    ],
)
def test_out_of_memory_errors_are_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    exit_if_device_lost(error, "the decoder")  # this process has not used a GPU


@pytest.mark.parametrize("message", [ASSERT, EXECUTION])
def test_a_lost_gpu_ends_the_process(
    message: str,
) -> None:
    run = run_decoder(message, UNKNOWN)
    assert (run.returncode, run.stdout) == (EXIT_STATUS, "")
    expected = f"the decoder of fake lost its GPU, and its process ends to be restarted: {message}"
    assert expected in run.stderr


@pytest.mark.parametrize(
    "failure", ["", CUDA, CAPTURING], ids=["none", "out of memory", "a capture that has failed"]
)
def test_other_errors_fail_their_sequences_only(failure: str) -> None:
    run = run_decoder(EXECUTION, failure)
    assert (run.returncode, run.stdout) == (0, "failed alone\n")


def run_decoder(message: str, failure: str) -> CompletedProcess[str]:
    """Run a decoder whose step fails with `message`; `failure` is that of its GPU afterwards."""
    return run_forked(["-c", LOSES_ITS_DEVICE, message, failure])
