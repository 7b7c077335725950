"""Debian's Prometheus, which scrapes a service with the committed configuration; its rules."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import yaml

from tests.support.export_cli import ROOT
from tests.support.running_service import free_port
from tests.support.waiting import running_program

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = CONFIG.parent / "rules"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason=(
        "no prometheus here: rules, alerts and dashboard of deploy/ are NOT tested "
        "(apt-get install --no-install-recommends prometheus)"
    ),
)


def committed_rules(kind: Literal["alert", "record"]) -> list[dict[str, Any]]:
    rules = []
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            rules += [rule for rule in group["rules"] if kind in rule]
    return rules


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def values(self, query: str) -> list[float]:
        series = self.data("query", {"query": query})["result"]
        return [float(sample["value"][1]) for sample in series]

    def data(self, path: str, parameters: dict[str, str]) -> Any:
        """Return what the API answers; raise with Prometheus' message for a bad query."""
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30)
        assert response.is_success, response.text
        return response.json()["data"]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=10).is_success
        except httpx.TransportError:
            return False


@contextmanager
def running_prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the committed configuration, but for its target and its interval."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    prometheus = Prometheus(f"http://{address}")
    with running_program(command, prometheus.is_ready, folder / "prometheus.log"):
        yield prometheus
