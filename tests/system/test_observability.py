"""A real Prometheus scrapes the real service at work: every rule, and every query of the dashboard,
finds its data.
"""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.export_cli import EMBEDDED
from tests.support.monitoring import CONFIG, DASHBOARD, committed_rules, needs_prometheus
from tests.support.running_service import RunningService, free_port, post_form
from tests.support.scene_images import scene_png
from tests.support.waiting import running_program

pytestmark = needs_prometheus

TASKS = ("captioning", "ocr")
DATA_TIMEOUT_S = 300
# Values of the dashboard's variables when everything is selected.
VARIABLES = {"$model": ".*", "$task": ".*", "$__rate_interval": "1m"}


def all_queries() -> Iterator[str]:
    """Yield the queries of rules, annotations and panels.

    Nothing fires on a service that is well, and nothing was started while Prometheus looked.
    """
    for rule in committed_rules("record"):
        yield rule["record"]
    targets = [note for note in DASHBOARD["annotations"]["list"] if note["name"] != "Starts"]
    for panel in DASHBOARD["panels"]:
        targets += panel.get("targets", ())
    for target in targets:
        yield re.sub(r"\$\w+", lambda match: VARIABLES[match[0]], target["expr"])


QUERIES = list(all_queries())


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


@pytest.fixture(scope="module")
def prometheus(service: RunningService, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the committed configuration that has seen both models at work until every
    query has an answer, or the time is over.
    """
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    options = ("config.file={0}/prometheus.yml", "storage.tsdb.path={0}", "web.listen-address={1}")
    command = ["prometheus", *(f"--{option}".format(folder, address) for option in options)]
    running = Prometheus(f"http://{address}")
    log = folder / "prometheus.log"
    with running_program(command, running.is_ready, log), service.client() as client:
        deadline_s = time.monotonic() + DATA_TIMEOUT_S
        seed = 0
        while without_data(running) and time.monotonic() < deadline_s:
            seed += 1
            for task in TASKS:
                response = post_form(client, "/v1/compare", scene_png(seed), {"task": task})
                response.raise_for_status()
        yield running


def without_data(prometheus: Prometheus) -> list[str]:
    return [query for query in QUERIES if not any(map(math.isfinite, prometheus.values(query)))]


def test_every_query_has_data(prometheus: Prometheus) -> None:
    assert without_data(prometheus) == []
    assert prometheus.values('up{job="diptych"}') == [1]


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.data("rules", {})["groups"] for rule in group["rules"]]
    assert len(rules) == len(committed_rules("alert")) + len(committed_rules("record"))
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    # on a service that is well
    assert prometheus.values('ALERTS{alertstate="firing"}') == []


def test_variables_offer_models_and_tasks(prometheus: Prometheus) -> None:
    offered = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match
            selector, label = match.groups()
            offered[label] = set(prometheus.data(f"label/{label}/values", {"match[]": selector}))
    assert offered["model"] == set(EMBEDDED)
    assert offered["task"] >= set(TASKS)
