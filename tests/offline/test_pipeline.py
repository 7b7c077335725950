"""The actors of a run: one for each GPU, else one for each host."""

import pytest

from offline.__main__ import show_progress
from offline.pipeline import DoneShard, Pool

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


DONE = [DoneShard(6, 0, 10.0, 14.0), DoneShard(4, 1, 12.0, 15.0)]


@pytest.mark.parametrize(("num_images", "total"), [(12, 12), (None, 15)])
def test_progress_and_rate(
    capsys: pytest.CaptureFixture[str], num_images: int | None, total: int
) -> None:
    """The total of archives is estimated from the shards that are done."""
    show_progress(iter(DONE), 3, num_images)
    printed = capsys.readouterr()
    assert f"10/{total} " in printed.err
    assert "failed=1, shards=2/3" in printed.err
    assert printed.out == "10 images in 5.00 s, 2.00 images/s\n"
