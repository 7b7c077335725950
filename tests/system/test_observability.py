"""A real Prometheus scrapes the real service at work: every rule, and every query of the dashboard,
finds its data.
"""

import itertools
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.export_cli import EMBEDDED
from tests.support.monitoring import CONFIG, DASHBOARD, committed_rules, needs_prometheus
from tests.support.running_service import RunningService, free_port
from tests.support.scene_images import scene_png
from tests.support.waiting import running_program

TASKS = ("captioning", "ocr")
DATA_TIMEOUT_S = 300
# Values of the dashboard's variables when everything is selected.
VARIABLES = {"$model": ".*", "$task": ".*", "$__rate_interval": "1m"}


def all_queries() -> Iterator[str]:
    """Yield the queries of rules, annotations, panels and variables.

    Nothing fires on a service that is well, nothing was started while Prometheus looked, and the
    service has no GPU.
    """
    for rule in committed_rules("record"):
        yield rule["record"]
    targets = [note for note in DASHBOARD["annotations"]["list"] if note["name"] != "Starts"]
    for panel in DASHBOARD["panels"]:
        targets += panel.get("targets", ())
    for target in targets:
        if "diptych_gpu" in target["expr"]:
            continue
        yield re.sub(r"\$\w+", lambda match: VARIABLES[match[0]], target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            yield re.sub(r"label_values\((\w+), (\w+)\)", r"count by (\2) (\1)", query)


def data(url: str, path: str, **parameters: str) -> Any:
    """Return what Prometheus answers; raise with its message for a bad query."""
    response = httpx.get(f"{url}/api/v1/{path}", params=parameters, timeout=30)
    assert response.is_success, response.text
    return response.json()["data"]


def values(url: str, query: str) -> list[float]:
    return [float(sample["value"][1]) for sample in data(url, "query", query=query)["result"]]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=10).is_success
    except httpx.TransportError:
        return False


def write_config(file: Path, service: RunningService) -> None:
    """Write the committed configuration, of which the intervals are shorter."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
    file.write_text(yaml.safe_dump(config), encoding="utf-8")


@needs_prometheus
def test_every_rule_and_query_has_data(service: RunningService, tmp_path: Path) -> None:
    write_config(tmp_path / "prometheus.yml", service)
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}"
    options = ("config.file={0}/prometheus.yml", "storage.tsdb.path={0}", "web.listen-address={1}")
    command = ["prometheus", *(f"--{option}".format(tmp_path, address) for option in options)]
    with running_program(command, lambda: is_ready(url), tmp_path / "log"):
        deadline_s = time.monotonic() + DATA_TIMEOUT_S
        empty = list(all_queries())
        for seed in itertools.count(1):
            empty = [query for query in empty if not any(map(math.isfinite, values(url, query)))]
            if not empty or time.monotonic() > deadline_s:
                break
            for task in TASKS:
                service.predict(scene_png(seed), task=task).raise_for_status()
                service.predict(scene_png(seed), task=task, model=EMBEDDED[1]).raise_for_status()
        assert not empty
        assert values(url, 'up{job="diptych"}') == [1]
        groups = data(url, "rules")["groups"]
        rules = list(itertools.chain.from_iterable(group["rules"] for group in groups))
        assert len(rules) == len(committed_rules("alert")) + len(committed_rules("record"))
        assert all(rule["health"] == "ok" for rule in rules)
        # on a service that is well
        assert values(url, 'ALERTS{alertstate="firing"}') == []
