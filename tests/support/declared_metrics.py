"""The metrics that the code declares."""

from prometheus_client.metrics import MetricWrapperBase

import service.telemetry.metrics
import wire.telemetry.runner_metrics


def declared_metrics() -> set[str]:
    """Return the name of every metric of ours, without the `_total` of a counter."""
    return {
        metric._name.removesuffix("_total")
        for module in (wire.telemetry.runner_metrics, service.telemetry.metrics)
        for metric in vars(module).values()
        if isinstance(metric, MetricWrapperBase)
    }
