import pytest

from runners import errors
from runners.errors import EXIT_STATUS, exit_if_device_lost, is_out_of_memory

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


@pytest.mark.parametrize(
    ("failure", "statuses"),
    [(UNKNOWN, [EXIT_STATUS]), (ASSERT, [EXIT_STATUS]), (CUDA, []), (CAPTURING, []), (None, [])],
    ids=["lost", "lost by an assert", "out of memory", "a failed capture", "none"],
)
def test_only_a_lost_device_ends_the_process(
    failure: str | None,
    statuses: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error of a call says nothing: the device is tried after it."""

    def use_device() -> None:
        if failure is not None:
            raise RuntimeError(failure)

    exits: list[int] = []
    monkeypatch.setattr(errors, "use_device", use_device)
    monkeypatch.setattr("os._exit", exits.append)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    exit_if_device_lost(RuntimeError(EXECUTION), "the decoder of x")
    assert exits == statuses
    lost = f"the decoder of x lost its GPU, and its process ends to be restarted: {EXECUTION}"
    assert caplog.messages == [lost] * len(statuses)
