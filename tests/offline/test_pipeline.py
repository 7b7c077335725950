"""The actors of a run: one for each GPU, else one for each host."""

import pytest

from offline.pipeline import Pool

GPU_HOST = {"CPU": 16.0, "GPU": 4.0}
HOST = {"CPU": 8.0}
HEAD = {"CPU": 0.0}  # a head of a cluster that runs no actors


@pytest.mark.parametrize(
    ("hosts", "device", "num_actors", "pool"),
    [
        ([GPU_HOST, GPU_HOST], "auto", None, Pool(8, 1, 1)),
        ([GPU_HOST, HOST], "cuda", 8, Pool(8, 1, 0.5)),
        ([GPU_HOST, HOST], "cpu", None, Pool(2, 8, 0)),
        ([HEAD, HOST, HOST], "auto", None, Pool(2, 8, 0)),
        ([HOST, HOST], "auto", 4, Pool(4, 4, 0)),
        ([HOST, HOST], "auto", 1, Pool(1, 8, 0)),
    ],
)
def test_pool_size(
    hosts: list[dict[str, float]], device: str, num_actors: int | None, pool: Pool
) -> None:
    assert Pool.of(hosts, device, num_actors) == pool
