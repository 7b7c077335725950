"""The progress of a run: what the bar shows, and the rate at its end."""

import pytest

from offline.__main__ import show_progress
from offline.pipeline import DoneShard

DONE = [DoneShard(6, 0, 10.0, 14.0), DoneShard(4, 1, 12.0, 15.0)]


@pytest.mark.parametrize(("num_images", "total"), [(12, 12), (None, 15)])
def test_failures_and_shards_are_shown_and_the_rate_is_without_the_start(
    capsys: pytest.CaptureFixture[str], num_images: int | None, total: int
) -> None:
    """The total of archives is estimated from the shards that are done."""
    show_progress(iter(DONE), 3, num_images)
    shown = capsys.readouterr()
    assert f"10/{total} " in shown.err
    assert "failed=1, shards=2/3" in shown.err
    assert shown.out == "10 images in 5.00 s, 2.00 images/s\n"
