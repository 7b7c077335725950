"""Replicas: two runners of one model behind HAProxy with the shipped configuration, one of which
goes under load and returns; two services behind Debian's nginx that are restarted in turn.
"""

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.export_cli import ModelStore
from tests.support.haproxy import haproxy, needs_haproxy
from tests.support.processes import is_open
from tests.support.running_service import RunningService, forked_service, free_port
from tests.support.waiting import running_program, wait_until
from tests.system.load import load
from tests.system.replicas import MODEL, kill_all, replicas
from tests.system.service_metrics import metric

NUM_CLIENTS = 8
STOP_S = 60
# Temporary files are in the test's folder: started by root, nginx is another user. A replica that
# failed once is asked again a second later, not ten.
CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_buffer_size 2m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream diptych {{
        server 127.0.0.1:{first} max_fails=1 fail_timeout=1s;
        server 127.0.0.1:{second} max_fails=1 fail_timeout=1s;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://diptych;
            proxy_buffering off;
            proxy_next_upstream error timeout http_503 non_idempotent;
        }}
    }}
}}
"""


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


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("nginx") is None, reason="no nginx here: rolling restarts are NOT tested"
)
def test_nothing_is_lost_in_a_rolling_restart(exported: ModelStore, tmp_path: Path) -> None:
    first, second, port = (free_port() for _ in range(3))
    file = tmp_path / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=tmp_path, first=first, second=second, port=port))

    def replica(number: int) -> RunningService:
        settings = {"DIPTYCH_PORT": str(number), "DIPTYCH_MODELS": MODEL}
        log = tmp_path / f"{number}.log"
        return stack.enter_context(forked_service(exported.home, log, **settings))

    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        running = list(threads.map(replica, (first, second)))
        command = ["nginx", "-p", str(tmp_path), "-c", str(file)]
        stack.enter_context(running_program(command, lambda: is_open(port), tmp_path / "nginx.log"))
        with load(f"http://127.0.0.1:{port}", 2 * NUM_CLIENTS, [MODEL]) as clients:
            for number, service in zip((first, second), running, strict=True):
                clients.wait_for_more(2 * NUM_CLIENTS)
                service.process.send_signal(signal.SIGTERM)
                assert service.process.wait(STOP_S) == 0
                replica(number)
                time.sleep(1.5)  # nginx asks a replica that failed again after a second
            clients.wait_for_more(2 * NUM_CLIENTS)
        assert set(clients.kinds()) == {"right"}, clients.failures()
