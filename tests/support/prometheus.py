"""Debian's Prometheus: whether it is here, and a real one that scrapes a service with the committed
configuration.
"""

import shutil
import subprocess
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
from tests.support.waiting import wait_until_ready

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
RULES = CONFIG.parent / "rules"
HAS_PROMETHEUS = bool(shutil.which("prometheus") and shutil.which("promtool"))
MISSING_PROMETHEUS = (
    "no prometheus here: rules, alerts and dashboard of deploy/ are NOT tested "
    "(apt-get install --no-install-recommends prometheus)"
)
_SCRAPE_INTERVAL = "1s"
_STOP_TIMEOUT_S = 60


def committed_rules(kind: Literal["alert", "record"]) -> list[dict[str, Any]]:
    """Return every committed rule that is an alert, or that records."""
    files = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))
    ]
    return [
        rule
        for file in files
        for group in file["groups"]
        for rule in group["rules"]
        if kind in rule
    ]


needs_prometheus = pytest.mark.skipif(not HAS_PROMETHEUS, reason=MISSING_PROMETHEUS)


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def values(self, query: str) -> list[float]:
        """Return the value of every series of an instant query.

        Raise with Prometheus' message for a bad one.
        """
        response = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30)
        answer = response.json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer['error']}")
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def label_values(self, label: str, selector: str) -> list[str]:
        """Return the values that a label has in the series of `selector`."""
        response = httpx.get(
            f"{self.url}/api/v1/label/{label}/values", params={"match[]": selector}, timeout=30
        )
        return list(response.raise_for_status().json()["data"])

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its health."""
        groups = (
            httpx.get(f"{self.url}/api/v1/rules", timeout=30)
            .raise_for_status()
            .json()["data"]["groups"]
        )
        return [rule for group in groups for rule in group["rules"]]

    def is_ready(self) -> bool:
        """Return True if Prometheus is ready."""
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=10).is_success
        except httpx.TransportError:
            return False


@contextmanager
def running_prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Start Prometheus with the committed configuration, but for its target and its interval, and
    data in `folder`.
    """
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": _SCRAPE_INTERVAL,
        "evaluation_interval": _SCRAPE_INTERVAL,
    }
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=log, stderr=log
        )
    prometheus = Prometheus(f"http://{address}")
    try:
        wait_until_ready(prometheus.is_ready, process, folder / "prometheus.log")
        yield prometheus
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)
