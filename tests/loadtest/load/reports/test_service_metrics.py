"""Numbers from the service's metrics, in texts written by prometheus_client."""

import math

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

from loadtest.load.reports.service_metrics import (
    Scrape,
    ServiceNumbers,
    histogram_quantile,
    scraped,
    service_numbers,
)
from loadtest.load.traffic.plans import Window

WINDOW = Window(1, 10, 20)


class Metrics:
    """A service with these metrics and one that is not used."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["model", "stage"]
        self.batch = Histogram(
            "diptych_batch_size", "-", labels, buckets=(1, 2, 4), registry=self._registry
        )
        self.depth = Gauge("diptych_queue_depth", "-", labels, registry=self._registry)
        self.first_token = Histogram(
            "diptych_time_to_first_token_seconds",
            "-",
            ["model", "task"],
            buckets=(0.1, 0.2),
            registry=self._registry,
        )
        Gauge("diptych_live_sequences", "-", registry=self._registry).set(5)

    def get(self, _path: str) -> bytes:
        return generate_latest(self._registry)


def test_numbers_are_of_the_window_only() -> None:
    metrics = Metrics()
    batch = metrics.batch.labels("m", "encode")
    depth = metrics.depth.labels("m", "decode")
    first_tokens = [metrics.first_token.labels(model, "ocr") for model in ("m", "n")]
    scrapes = []
    for time_s, size, waiting, seconds in (
        (5, 4, 90, 5),
        (10, 4, 2, 5),
        (15, 2, 8, 0.05),
        (19, 1, 2, 0.15),
        (25, 4, 70, 5),
    ):
        batch.observe(size)
        depth.set(waiting)
        for first_token in first_tokens:
            first_token.observe(seconds)
        scrapes.append(scraped(metrics.get, time_s))
    numbers = service_numbers(scrapes, WINDOW)
    # what came after the first scrape of the window
    assert numbers.batch_size_mean == {"m encode": 1.5}
    assert numbers.queue_depth_mean == {"m decode": 4}
    assert numbers.queue_depth_max == {"m decode": 8}
    assert numbers.first_token_p50_ms == pytest.approx(100)
    assert numbers.first_token_p95_ms == pytest.approx(190)


def test_only_lines_of_used_metrics_are_kept() -> None:
    text = scraped(Metrics().get, 0).text
    assert "live_sequences" not in text
    assert "#" not in text


def test_a_window_without_scrapes_has_no_numbers() -> None:
    assert service_numbers([Scrape(5, "")], WINDOW) == ServiceNumbers()


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({1.0: 5, 2.0: 10, math.inf: 10}, 0.5, 1.0),
        ({1.0: 0, 2.0: 10, math.inf: 10}, 0.5, 1.5),
        ({1.0: 0, 2.0: 0, math.inf: 10}, 0.5, 2.0),
        ({1.0: 0, math.inf: 0}, 0.5, None),
        ({}, 0.5, None),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(
    buckets: dict[float, float], share: float, expected: float | None
) -> None:
    assert histogram_quantile(buckets, share) == expected
