"""The defaults of a runner that follow from its device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from runners.kv_cache import DecoderShape
from runners.model_worker import DecoderWorker
from runners.models.layers import linear_layer
from runners.options import (
    CUDA_RESERVE_BYTES,
    RunnerOptions,
    SchedulerLimits,
    default_prefill_tokens,
    encoder_bytes,
    max_adapter_bytes,
    max_default_slots,
    slots_that_fit,
)
from wire.artifacts.adapter_folder import AdapterLimits, NoRoomError
from wire.artifacts.manifest import Device
from wire.telemetry.tracing import TraceOptions

GB = 10**9


@pytest.mark.parametrize(
    ("free_gb", "slot_mb", "num_sharing", "expected"),
    [
        (70, 40, 1, 64),  # a large card: at most the limit
        (6.5, 100, 1, 40),
        (6.5, 100, 2, 20),  # two runners: half of what the reserve leaves
        (2.6, 100, 1, 1),
        (2.5, 100, 1, 0),
        (1, 100, 1, 0),
    ],
)
def test_slots_fill_what_the_reserve_leaves(
    free_gb: float, slot_mb: int, num_sharing: int, expected: int
) -> None:
    assert (
        slots_that_fit(int(free_gb * GB), CUDA_RESERVE_BYTES, slot_mb * 10**6, num_sharing)
        == expected
    )


def test_more_memory_never_gives_fewer_slots_and_all_fit() -> None:
    before = 0
    for free_bytes in range(0, 40 * GB, 37 * 10**6):
        num_slots = slots_that_fit(free_bytes, CUDA_RESERVE_BYTES, 311 * 10**6, num_sharing=3)
        assert num_slots >= before
        assert not num_slots or 3 * num_slots * 311 * 10**6 + CUDA_RESERVE_BYTES <= free_bytes
        before = num_slots
    assert before == (39_987_000_000 - CUDA_RESERVE_BYTES) // 3 // (311 * 10**6)


def test_an_encoder_leaves_half_of_a_gpu_to_the_decoder() -> None:
    assert encoder_bytes(16 * GB) == 8 * GB
    assert encoder_bytes(16 * GB, num_sharing=2) == 4 * GB


def test_a_cpu_has_sixteen_slots() -> None:
    assert (max_default_slots("cpu"), max_default_slots("cuda")) == (16, 64)


SHAPE = DecoderShape(
    num_layers=23,
    num_heads=1,
    num_positions=1000,
    head_size=1000,
    num_tokens=250_000,
    dtype=torch.bfloat16,
    device=torch.device("cpu"),
)


class Memory:
    """A decoder, of which only the memory matters: 92 MB a slot, 100 with the choice of a token."""

    shape = SHAPE


def worker(device: Device, num_sharing_gpu: int = 1, **adapters: Any) -> Any:
    options = RunnerOptions(
        limits=SchedulerLimits(num_slots=0, max_waiting=1, max_prefill_tokens=1),
        max_batch_size=0,
        max_latency_ms=1,
        max_cache_bytes=500_000_000,
        max_positions=0,
        encoder_threads=0,
        decoder_threads=0,
        device=device,
        gpu=None,
        encoder_precision="auto",
        decoder_precision="auto",
        timeout_s=1,
        traces=TraceOptions(None, 1.0),
        num_sharing_gpu=num_sharing_gpu,
        **adapters,
    )
    manifest: Any = type("Named", (), {"model_id": "a-model"})
    made: Any = DecoderWorker(manifest, options, device)
    made._decoder = Memory()
    return made


def test_the_cache_of_features_is_reserved_too() -> None:
    assert worker("cuda").default_slots(free_bytes=8 * GB) == 50
    assert worker("cuda", num_sharing_gpu=2).default_slots(free_bytes=8 * GB) == 25


def test_a_gpu_without_memory_for_a_slot_is_an_error_that_names_what_to_change() -> None:
    with pytest.raises(
        RuntimeError,
        match=r"a-model: 0 slots of 100\.0 MB fit into 3\.0 GB .* lower DIPTYCH_DECODER",
    ):
        worker("cuda").default_slots(free_bytes=3 * GB)


def test_a_cpu_prefills_released_models_one_by_one_and_embedded_ones_together() -> None:
    assert default_prefill_tokens("cpu", hidden_size=768) < 2 * 580  # image and a short prompt
    assert default_prefill_tokens("cpu", hidden_size=2048) < 2 * 260
    assert default_prefill_tokens("cpu", hidden_size=192) == 4096
    assert default_prefill_tokens("cuda", hidden_size=2048) == 4096


def test_adapters_take_at_most_a_quarter_of_a_gpu() -> None:
    assert max_adapter_bytes(35 * GB, 3 * GB, max_bytes=4 * GB) == 4 * GB
    assert max_adapter_bytes(11 * GB, 3 * GB, max_bytes=4 * GB) == 2 * GB
    assert max_adapter_bytes(11 * GB, 3 * GB, max_bytes=4 * GB, num_sharing=2) == GB
    assert max_adapter_bytes(2 * GB, 3 * GB, max_bytes=4 * GB) == 0


def worker_with_layer(num_sharing_gpu: int = 1, **adapters: Any) -> Any:
    """Return a worker with a layer that is open to adapters: 4,000 bytes for each rank."""
    made = worker("cpu", num_sharing_gpu, **adapters)
    made.adapters.over(linear_layer(torch.zeros(600, 400), None, "float16"), ["q"], [600], 400)
    made.open_pool(8 * GB)
    return made


def test_slots_leave_the_adapters_of_a_folder_what_they_may_take() -> None:
    """A quarter of 5 GB, of which the pool is already taken."""
    folder = Path("adapters")
    assert worker_with_layer().default_slots(free_bytes=8 * GB) == 50
    assert worker_with_layer(adapters_folder=folder).default_slots(free_bytes=8 * GB) == 37
    two = worker_with_layer(2, adapters_folder=folder)
    assert two.default_slots(free_bytes=8 * GB) == 18


def test_the_pool_takes_half_of_what_adapters_may_take_and_counts() -> None:
    limits = AdapterLimits(max_total_bytes=400_000)
    adapters = worker_with_layer(adapter_limits=limits).adapters
    assert adapters.pool.num_columns == 50
    assert adapters.pool.num_bytes == adapters.num_bytes_with({}) == 200_000
    tensors = {"q.down": torch.ones(51, 400), "q.up": torch.ones(600, 51)}
    with pytest.raises(NoRoomError, match=r"would take 0\.404 MB.* 0\.4 MB are allowed"):
        adapters.add("a", tensors, limits.max_total_bytes)
    adapters.add("a", tensors, 404_000)
    little = AdapterLimits(max_total_bytes=7_999)
    assert worker_with_layer(adapter_limits=little).adapters.pool is None
