"""Replicas: two runners of one model behind HAProxy with the shipped configuration, one of which
goes under load and returns.
"""

from pathlib import Path

from tests.support.export_cli import ModelStore
from tests.support.haproxy import haproxy, needs_haproxy
from tests.support.running_service import RunningService
from tests.support.waiting import wait_until
from tests.system.load import load
from tests.system.replicas import MODEL, kill_all, replicas
from tests.system.service_metrics import metric

NUM_CLIENTS = 8
STOP_S = 60


@needs_haproxy
def test_killed_runner_loses_nothing_beside_another(
    exported: ModelStore, service: RunningService, tmp_path: Path
) -> None:
    """The pixels of these answers come over TCP, those of the expected ones through memory."""
    with replicas(exported, tmp_path, 2) as runners:
        first, last = runners.ports
        urls = {MODEL: [f"http://127.0.0.1:{port}" for port in runners.ports]}
        with haproxy(urls, tmp_path) as proxy:
            gateway = runners.gateway(proxy.url(MODEL))
            with load(gateway.url, NUM_CLIENTS, [MODEL], expected_from=service.url) as clients:
                wait_until(lambda: proxy.num_ready(MODEL) == 2)
                clients.wait_for_more(2 * NUM_CLIENTS)
                kill_all(runners.running[first].process)
                wait_until(lambda: proxy.num_ready(MODEL) == 1)
                clients.wait_for_more(2 * NUM_CLIENTS)
                assert gateway.is_ready()
                runners.start([first])
                wait_until(lambda: proxy.num_ready(MODEL) == 2)
                clients.wait_for_more(4 * NUM_CLIENTS)
            assert set(clients.kinds()) == {"right"}, clients.failures()
            # it has answered since it is back
            assert metric(runners.running[first], "diptych_batch_size_count") > 0
            assert metric(runners.running[first], "diptych_live_sequences") == 0
            for port in (first, last):
                kill_all(runners.running[port].process)
            assert_not_ready(gateway)
            runners.start([last])
            gateway.wait_until_ready()
            assert gateway.predict(task="captioning").status_code == 200


def assert_not_ready(gateway: RunningService) -> None:
    refused = gateway.predict(task="captioning")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert f"runner of {MODEL}" in refused.json()["error"]["message"]
    wait_until(lambda: not gateway.is_ready())
