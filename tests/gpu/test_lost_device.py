"""A lost device ends its process with a status of its own; a failed product only its sequence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from runners.errors import EXIT_STATUS, exit_if_device_lost
from tests.gpu.card import Card
from tests.gpu.counts import fake_runtime
from tests.gpu.models import Model, requests, scheduler, with_long_prompt, write
from tests.gpu.test_counts import new_encoder

pytestmark = pytest.mark.gpu

# cudaError: ECC, NVLink, contained ECC, busy, illegal address, assert, launch failure, unknown
LOST = (214, 220, 226, 46, 700, 710, 719, 999)
EXECUTION_FAILED = 13  # CUBLAS_STATUS_EXECUTION_FAILED
_TIMEOUT_S = 60.0


def outcome_of(work: Callable[[float], object]) -> str:
    """Return "answered", or the kind of the error; raise `TimeoutError` after a minute."""
    try:
        work(_TIMEOUT_S)
    except TimeoutError:
        raise
    except Exception as error:
        return "out of memory" if "memory" in str(error).lower() else repr(error)
    return "answered"


def trip(model: Model) -> None:
    """Fail an assertion of the device in a prefill; the process should not return."""
    decoder = model.decoder()
    with scheduler(decoder, 2) as running:
        engine: Any = running._batch._engine
        prefill = engine.prefill

        def prefill_and_fail(*arguments: Any) -> Any:
            torch._assert_async(torch.zeros(1, device="cuda"))
            return prefill(*arguments)

        engine.prefill = prefill_and_fail
        write(running, requests(decoder, [model.features()], 8))


def test_a_failed_assertion_ends_the_process(card: Card) -> None:
    run = card.start(trip, "florence-2-mini")
    assert (run.returncode, run.stdout) == (EXIT_STATUS, ""), run.stderr
    assert "lost its GPU" in run.stderr


def lose(model: Model, code: str) -> None:
    """Lose the device while a decoder serves; the process should not return."""
    decoder = model.decoder()
    with scheduler(decoder, 2) as running:
        pending = requests(decoder, [model.features()], 8)
        write(running, pending)
        fake_runtime().fake_cuda_lose_device(int(code))  # every later call fails
        write(running, pending)


@pytest.mark.long
@pytest.mark.parametrize("code", LOST)
def test_a_lost_device_ends_the_process(fake_card: Card, code: int) -> None:
    run = fake_card.start(lose, "florence-2-mini", str(code))
    assert (run.returncode, run.stdout) == (EXIT_STATUS, ""), run.stderr
    assert "lost its GPU" in run.stderr


def lose_unnoticed(_model: Model) -> None:
    """Lose the device, which no call has noticed, before another error."""
    torch.zeros(1, device="cuda")
    fake_runtime().fake_cuda_lose_device(700)
    exit_if_device_lost(RuntimeError("another error"), "the decoder of a test")


def test_a_lost_device_is_noticed_after_any_error(fake_card: Card) -> None:
    run = fake_card.start(lose_unnoticed, "florence-2-mini")
    assert (run.returncode, run.stdout) == (EXIT_STATUS, ""), run.stderr


def fail_product(model: Model) -> list[str]:
    """Fail a product once while a decoder serves; return the outcomes then and afterwards."""
    decoder = model.decoder()
    with scheduler(decoder, 2) as running:
        (request,) = requests(decoder, [model.features()], 8)
        long = [with_long_prompt(request)]  # products of a captured prefill are replayed
        # after cuBLASLt torch tries cuBLAS
        fake_runtime().fake_cuda_fail_library(EXECUTION_FAILED, 2)
        return [outcome_of(lambda _: write(running, long)) for _ in range(2)]


@pytest.mark.long
def test_a_failed_product_fails_its_sequence(fake_card: Card) -> None:
    first, second = fake_card.run(fail_product, "florence-2-mini")
    assert "CUBLAS_STATUS_EXECUTION_FAILED" in first
    assert second == "answered"


def load_encoder(model: Model) -> None:
    new_encoder(model)


def test_a_gpu_without_kernels_is_refused_at_the_start(fake_card: Card) -> None:
    run = fake_card.start(load_encoder, "florence-2-mini", FAKE_CUDA_CAPABILITY="100")
    assert "the GPU's is 10.0; TensorRT does not load: libnvinfer.so.10: cannot open" in run.stderr
