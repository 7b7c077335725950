"""Rules and dashboard of deploy/, and the metrics that the code declares."""

import json
import shutil
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

import service.telemetry.metrics
import wire.telemetry.runner_metrics
from tests.support.export_cli import ROOT

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy/grafana/dashboards/diptych.json").read_text(encoding="utf-8")
)
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason=(
        "no prometheus here: rules, alerts and dashboard of deploy/ are NOT tested "
        "(apt-get install --no-install-recommends prometheus)"
    ),
)


def committed_rules(kind: Literal["alert", "record"]) -> list[dict[str, Any]]:
    rules = []
    for path in sorted((CONFIG.parent / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            rules += [rule for rule in group["rules"] if kind in rule]
    return rules


def own_metrics() -> Iterator[MetricWrapperBase]:
    for module in (service.telemetry.metrics, wire.telemetry.runner_metrics):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                yield metric


def declared_metrics() -> set[str]:
    """Return the name of every metric of ours, without the `_total` of a counter."""
    return {metric._name.removesuffix("_total") for metric in own_metrics()}
