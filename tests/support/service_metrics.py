"""Sums over the samples of a running service's /metrics."""

from prometheus_client.parser import text_string_to_metric_families

from tests.support.running_service import RunningService


def metric(service: RunningService, name: str, **labels: str) -> float:
    """Return the sum of all samples of a name that have these labels."""
    with service.client() as client:
        families = text_string_to_metric_families(client.get("/metrics").raise_for_status().text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
