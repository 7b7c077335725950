"""Two replicas behind Debian's nginx, each restarted in turn under 16 clients: no request is
lost.
"""

import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.export_cli import ModelStore
from tests.support.load import load
from tests.support.processes import is_open
from tests.support.running_service import RunningService, forked_service, free_port
from tests.support.waiting import running_program

NUM_CLIENTS = 16
MODEL = "florence-2-mini"  # one is enough, and two services of it have room on two cores
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
        with load(f"http://127.0.0.1:{port}", NUM_CLIENTS, [MODEL]) as clients:
            for number, service in zip((first, second), running, strict=True):
                clients.wait_for_more(2 * NUM_CLIENTS)
                service.process.send_signal(signal.SIGTERM)
                assert service.process.wait(STOP_S) == 0
                replica(number)
                time.sleep(1.5)  # nginx asks a replica that failed again after a second
            clients.wait_for_more(2 * NUM_CLIENTS)
        assert set(clients.kinds()) == {"right"}, clients.failures()
