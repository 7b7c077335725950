"""Latencies of a polite client, and the verdict about its neighbour."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest import neighbours
from loadtest.neighbours import Party, measure, p95, polite_latencies
from tests.support.http_servers import Handler, serving


@contextmanager
def service(*pauses_s: float | None) -> Iterator[Party]:
    """A service that answers after pauses, the last again and again; None: with an error."""
    pauses = list(pauses_s)

    class Service(Handler):
        def do_POST(self) -> None:
            self.body()
            pause_s = pauses.pop(0) if len(pauses) > 1 else pauses[0]
            time.sleep(pause_s or 0.0)
            self.send(429 if pause_s is None else 200)

    with serving(Service) as url:
        yield Party(url, "", 0, 0)


def test_95th_percentile() -> None:
    assert p95([float(number) for number in range(1, 21)]) == 19
    assert p95([0.5]) == 0.5


async def test_latency_counts_from_when_a_request_is_due() -> None:
    with service(0.6, 0.0) as party:
        first, second = await polite_latencies(party.url, 1)
    assert 0.6 <= first < 30
    assert second < 30
    with service(None) as party:
        assert await polite_latencies(party.url, 0.5) == [math.inf]


@pytest.mark.parametrize(
    ("pauses_s", "is_within"), [((0.01,), True), ((0.01, 1.5), False), ((0.01, None), False)]
)
def test_verdict(
    pauses_s: tuple[float | None, ...], is_within: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_SETTLE_S", 0.1)
    with service(*pauses_s) as party:
        cells, is_row_within = measure("nobody", party, 0.5)
    assert cells[0] == "nobody"
    assert is_row_within == is_within
