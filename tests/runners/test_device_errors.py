from subprocess import CompletedProcess

import pytest

from runners.device_errors import EXIT_STATUS, exit_if_device_lost, is_out_of_memory
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
ASSERT = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"
)
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=a"

LOSES_ITS_DEVICE = """
import sys, time
from runners.decoder.scheduler import Scheduler
from runners.options import SchedulerLimits
from tests.support.fake_decoder import FakeDecoder
from tests.runners.decoder.test_scheduler import request

class Lost(FakeDecoder):
    def decode_step(self, cache, token_ids):
        raise RuntimeError(sys.argv[1])

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


@pytest.mark.parametrize("message", [ARENA, CUDA, CUBLAS, UNSUPPORTED])
def test_an_error_that_leaves_the_device_usable_does_not_end_the_process(message: str) -> None:
    exit_if_device_lost(RuntimeError(message), "the decoder")


def test_a_decoder_that_lost_its_gpu_ends_its_process_with_a_reason() -> None:
    run = run_decoder(ASSERT)
    assert (run.returncode, run.stdout) == (EXIT_STATUS, "")
    assert (
        "the decoder of fake lost its GPU, and its process ends to be restarted: CUDA error"
        in run.stderr
    )


def test_another_error_of_a_step_fails_its_sequences_only() -> None:
    run = run_decoder(UNSUPPORTED)
    assert (run.returncode, run.stdout) == (0, "failed alone\n")


def run_decoder(message: str) -> CompletedProcess[str]:
    return run_forked(["-c", LOSES_ITS_DEVICE, message])
