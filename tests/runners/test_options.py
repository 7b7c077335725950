"""The defaults of a runner that follow from its device."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runners.model_worker import DecoderWorker
from runners.models.layers import linear_layer
from runners.options import (
    default_prefill_tokens,
    max_default_slots,
)
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.catalog import FLORENCE
from tests.support.fake_decoder import FAKE_SHAPE
from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.manifest import ArtifactError, Device

GB = 10**9


def test_defaults_of_a_device() -> None:
    assert (max_default_slots("cpu"), max_default_slots("cuda")) == (16, 64)
    # released models are prefilled one by one on a CPU: an image and a short prompt each
    assert default_prefill_tokens("cpu", hidden_size=768) < 2 * 580
    assert default_prefill_tokens("cpu", hidden_size=2048) < 2 * 260
    assert default_prefill_tokens("cpu", hidden_size=192) == 4096
    assert default_prefill_tokens("cuda", hidden_size=2048) == 4096


class Memory:
    """A decoder, of which only the memory matters: 92 MB a slot, 100 with the choice of a token."""

    shape = replace(
        FAKE_SHAPE, num_layers=23, num_positions=1000, head_size=1000, num_tokens=250_000,
        dtype=torch.bfloat16,
    )  # fmt: skip


def worker(device: Device, num_sharing_gpu: int = 1, **adapters: Any) -> Any:
    options = runner_options(FLORENCE.id, Settings(device=device, vision_cache_mb=500), ())
    options = replace(options, num_sharing_gpu=num_sharing_gpu, **adapters)
    manifest: Any = SimpleNamespace(model_id="a-model")
    decoder_worker: Any = DecoderWorker(manifest, options, device)
    decoder_worker._decoder = Memory()
    return decoder_worker


def test_the_cache_of_features_is_reserved_too() -> None:
    assert worker("cuda").default_slots(free_bytes=8 * GB) == 50
    assert worker("cuda", num_sharing_gpu=2).default_slots(free_bytes=8 * GB) == 25
    assert worker("cuda").default_slots(free_bytes=70 * GB) == 64  # at most the limit
    assert worker("cuda").default_slots(free_bytes=3100 * 10**6) == 1
    message = r"a-model: 0 slots of 100\.0 MB fit into 3\.0 GB .* lower DIPTYCH_DECODER"
    with pytest.raises(RuntimeError, match=message):
        worker("cuda").default_slots(free_bytes=3 * GB)


def worker_with_layer(num_sharing_gpu: int = 1, **adapters: Any) -> Any:
    """Return a worker with a layer that is open to adapters: 4,000 bytes for each rank."""
    decoder_worker = worker("cpu", num_sharing_gpu, **adapters)
    base = linear_layer(torch.zeros(600, 400), None, "float16")
    decoder_worker.adapters.over(base, ["q"], [600], 400)
    decoder_worker.open_pool(8 * GB)
    return decoder_worker


@pytest.mark.parametrize(
    ("free_gb", "num_sharing", "expected_gb"), [(35, 1, 4), (11, 1, 2), (11, 2, 1), (2, 1, 0)]
)
def test_adapters_take_at_most_a_quarter(free_gb: int, num_sharing: int, expected_gb: int) -> None:
    sharing = worker_with_layer(num_sharing)
    sharing.max_adapter_bytes = 4 * GB
    sharing.open_pool(free_gb * GB)
    assert sharing.max_adapter_bytes / GB == expected_gb


def test_slots_leave_room_to_adapters() -> None:
    """A quarter of 5 GB, of which the pool is already taken."""
    folder = Path("adapters")
    assert worker_with_layer().default_slots(free_bytes=8 * GB) == 50
    assert worker_with_layer(adapters_folder=folder).default_slots(free_bytes=8 * GB) == 37
    two = worker_with_layer(2, adapters_folder=folder)
    assert two.default_slots(free_bytes=8 * GB) == 18


def test_the_pool_takes_half_of_the_adapters_memory() -> None:
    limits = AdapterLimits(max_total_bytes=400_000)
    adapters = worker_with_layer(adapter_limits=limits).adapters
    assert adapters.pool.num_columns == 50
    assert adapters.pool.num_bytes == adapters.num_bytes_with({}) == 200_000
    tensors = {"q.down": torch.ones(51, 400), "q.up": torch.ones(600, 51)}
    with pytest.raises(ArtifactError, match=r"would take 0\.404 MB.* 0\.4 MB are allowed"):
        adapters.add("a", tensors, limits.max_total_bytes)
    adapters.add("a", tensors, 404_000)
    little = AdapterLimits(max_total_bytes=7_999)
    assert worker_with_layer(adapter_limits=little).adapters.pool is None
