"""A real Prometheus scrapes the real service at work: every rule, and every query of the dashboard,
finds its data.
"""

import math
import time
from collections.abc import Iterator

import pytest

from tests.support.dashboard import queries, variable_queries
from tests.support.export_cli import EMBEDDED
from tests.support.prometheus import (
    Prometheus,
    committed_rules,
    needs_prometheus,
    running_prometheus,
)
from tests.support.running_service import RunningService, post_form
from tests.support.scene_images import scene_png

pytestmark = needs_prometheus

TASKS = ("captioning", "ocr")
DATA_TIMEOUT_S = 300
# Nothing fires on a service that is well, and nothing was started while Prometheus looked.
EMPTY = {"Starts"}
QUERIES = [rule["record"] for rule in committed_rules("record")]
QUERIES += [query for title, query in queries() if title not in EMPTY]


@pytest.fixture(scope="module")
def prometheus(
    service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has seen both models at work until every query has an answer, or the time
    is over.
    """
    target = service.url.removeprefix("http://")
    folder = tmp_path_factory.mktemp("prometheus")
    deadline_s = time.monotonic() + DATA_TIMEOUT_S
    with running_prometheus(target, folder) as running, service.client() as client:
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
    for label, selector in variable_queries():
        offered[label] = set(prometheus.data(f"label/{label}/values", {"match[]": selector}))
    assert offered["model"] == set(EMBEDDED)
    assert offered["task"] >= set(TASKS)
