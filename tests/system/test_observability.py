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
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png

pytestmark = needs_prometheus

TASKS = ("captioning", "ocr")
DATA_TIMEOUT_S = 300
# Nothing fires on a service that is well, and nothing was started while Prometheus looked.
EMPTY = {"Starts"}


@pytest.fixture(scope="module")
def prometheus(
    service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has seen the service at work over several scrapes."""
    with running_prometheus(
        service.url.removeprefix("http://"), tmp_path_factory.mktemp("prometheus")
    ) as running:
        load_until_seen(service, running)
        yield running


def load_until_seen(service: RunningService, prometheus: Prometheus) -> None:
    """Send requests to both models until every query has an answer or the time is over.

    The tests name queries without an answer.
    """
    deadline_s = time.monotonic() + DATA_TIMEOUT_S
    with service.client() as client:
        for seed in range(1000):
            for task in TASKS:
                files = {"image": scene_png(seed)}
                client.post("/v1/compare", data={"task": task}, files=files).raise_for_status()
            if time.monotonic() > deadline_s or all(
                has_data(prometheus, query) for _, query in must_have_data()
            ):
                return


def must_have_data() -> list[tuple[str, str]]:
    recorded = [(rule["record"], rule["record"]) for rule in committed_rules("record")]
    return [*recorded, *((title, query) for title, query in queries() if title not in EMPTY)]


def has_data(prometheus: Prometheus, query: str) -> bool:
    return any(math.isfinite(value) for value in prometheus.values(query))


def test_the_service_is_scraped_without_an_error(prometheus: Prometheus) -> None:
    assert prometheus.values('up{job="diptych"}') == [1]
    assert prometheus.values("scrape_samples_scraped")[0] > 100


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert len(rules) == len(committed_rules("alert")) + len(committed_rules("record"))
    assert [rule for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.parametrize(("title", "query"), must_have_data())
def test_what_is_shown_or_recorded_has_data(prometheus: Prometheus, title: str, query: str) -> None:
    assert has_data(prometheus, query), f"{title}: {query} has {prometheus.values(query)}"


def test_variables_offer_models_and_tasks(prometheus: Prometheus) -> None:
    offered = {
        label: set(prometheus.label_values(label, selector))
        for label, selector in variable_queries()
    }
    assert offered["model"] == set(EMBEDDED)
    assert offered["task"] >= set(TASKS)


def test_no_alert_fires_on_a_service_that_is_well(prometheus: Prometheus) -> None:
    assert prometheus.values('ALERTS{alertstate="firing"}') == []
