"""Two runners of one model behind HAProxy with the shipped configuration: one goes under load, and
returns.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.export_cli import ModelStore
from tests.support.haproxy import HaProxy, haproxy, needs_haproxy
from tests.support.load import load
from tests.support.processes import descendants
from tests.support.replicas import MODEL, Replicas, replicas
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

pytestmark = needs_haproxy
NUM_CLIENTS = 8
STOP_S = 60


@dataclass(frozen=True, slots=True)
class Stand:
    """Two runners, HAProxy, and a gateway that knows HAProxy's URL alone."""

    runners: Replicas
    proxy: HaProxy
    gateway: RunningService

    def wait_for(self, num_ready: int) -> None:
        wait_until(lambda: self.proxy.num_ready(MODEL) == num_ready)


@pytest.fixture(scope="module")
def stand(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder: Path = tmp_path_factory.mktemp("replicas")
    with replicas(exported, folder, 2) as runners:
        urls = {MODEL: [f"http://127.0.0.1:{port}" for port in runners.ports]}
        with haproxy(urls, folder) as proxy:
            made = Stand(runners, proxy, runners.gateway(proxy.url(MODEL)))
            made.wait_for(2)
            yield made


def test_nothing_is_lost_when_a_runner_is_killed_and_it_is_used_when_it_returns(
    stand: Stand, service: RunningService
) -> None:
    gone = stand.runners.ports[0]
    with load(stand.gateway.url, NUM_CLIENTS, models=[MODEL], expected_from=service.url) as asked:
        asked.wait_for_more(2 * NUM_CLIENTS)
        stand.runners.kill(gone)
        stand.wait_for(1)
        asked.wait_for_more(2 * NUM_CLIENTS)
        assert stand.gateway.is_ready()
        stand.runners.start([gone])
        stand.wait_for(2)
        asked.wait_for_more(4 * NUM_CLIENTS)
    assert set(asked.kinds()) == {"right"}, asked.others()
    assert metric(stand.runners.running[gone], "diptych_live_sequences") == 0
    # it has answered since it is back
    assert metric(stand.runners.running[gone], "diptych_batch_size_count") > 0


@pytest.mark.long
def test_nothing_is_lost_when_a_runner_stands_still(stand: Stand, service: RunningService) -> None:
    (stopped,) = descendants(stand.runners.running[stand.runners.ports[1]].process.pid)
    with load(stand.gateway.url, NUM_CLIENTS, models=[MODEL], expected_from=service.url) as asked:
        asked.wait_for_more(2 * NUM_CLIENTS)
        os.kill(stopped, signal.SIGSTOP)
        try:
            stand.wait_for(1)
            asked.wait_for_more(2 * NUM_CLIENTS)
        finally:
            os.kill(stopped, signal.SIGCONT)
        stand.wait_for(2)
        asked.wait_for_more(2 * NUM_CLIENTS)
    assert set(asked.kinds()) == {"right"}, asked.others()


def test_nothing_is_lost_when_a_runner_is_terminated(stand: Stand, service: RunningService) -> None:
    process = stand.runners.running[stand.runners.ports[0]].process
    with load(stand.gateway.url, NUM_CLIENTS, models=[MODEL], expected_from=service.url) as asked:
        asked.wait_for_more(2 * NUM_CLIENTS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
        asked.wait_for_more(2 * NUM_CLIENTS)
    assert set(asked.kinds()) == {"right"}, asked.others()


def test_without_a_runner_the_answer_is_503_until_one_is_back(stand: Stand) -> None:
    """The last of this file: one runner was terminated before."""
    _, last = stand.runners.ports
    stand.runners.kill(last)
    with httpx.Client(base_url=stand.gateway.url, timeout=60) as client:
        start_s = time.monotonic()
        refused = ask(client, 0)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert f"runner of {MODEL}" in refused.json()["error"]["message"]
        assert time.monotonic() - start_s < 30
        wait_until(lambda: not stand.gateway.is_ready())
        stand.runners.start([last])
        stand.gateway.wait_until_ready(STOP_S)
        assert ask(client, 0).status_code == 200


def ask(client: httpx.Client, seed: int) -> httpx.Response:
    form = {"task": "captioning", "model": MODEL}
    files = {"image": scene_png(seed)}
    return client.post("/v1/predict", data=form, files=files)
