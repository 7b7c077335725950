"""Sums over the samples of a running service's /metrics."""

from collections.abc import Iterable
from itertools import chain

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.running_service import RunningService


def metric(service: RunningService, name: str, **labels: str) -> float:
    return total(samples(service), name, **labels)


def samples(service: RunningService) -> list[Sample]:
    with service.client() as client:
        text = client.get("/metrics").raise_for_status().text
    families = text_string_to_metric_families(text)
    return list(chain.from_iterable(family.samples for family in families))


def total(samples: Iterable[Sample], name: str, **labels: str) -> float:
    matching = (sample for sample in samples if labels.items() <= sample.labels.items())
    return sum(sample.value for sample in matching if sample.name == name)
