"""Two replicas behind nginx, each restarted in turn under 16 clients: no request is lost."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.export_cli import ModelStore
from tests.support.load import load
from tests.support.nginx import has_nginx, nginx
from tests.support.running_service import RunningService, forked_service, free_port

NUM_CLIENTS = 16
MODEL = "florence-2-mini"  # one is enough, and two services of it have room on two cores
STOP_S = 60


@pytest.mark.long
@pytest.mark.skipif(
    not has_nginx(), reason="nginx is not installed: rolling restarts are not tested"
)
def test_nothing_is_lost_while_each_of_two_replicas_is_restarted(
    exported: ModelStore, tmp_path: Path
) -> None:
    ports = [free_port(), free_port()]

    def replica(index: int, attempt: int) -> RunningService:
        log = tmp_path / f"replica-{index}-{attempt}.log"
        settings = {"DIPTYCH_PORT": str(ports[index]), "DIPTYCH_MODELS": MODEL}
        return stack.enter_context(forked_service(exported.home, log, **settings))

    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        replicas = list(threads.map(replica, (0, 1), (1, 1)))
        with nginx(ports, tmp_path) as url, load(url, NUM_CLIENTS, models=[MODEL]) as asked:
            for index in range(len(replicas)):
                asked.wait_for_more(2 * NUM_CLIENTS)
                replicas[index].process.send_signal(signal.SIGTERM)
                assert replicas[index].process.wait(STOP_S) == 0
                replica(index, 2)
                time.sleep(1.5)  # nginx asks a replica that failed again after a second
            asked.wait_for_more(2 * NUM_CLIENTS)
        assert set(asked.kinds()) == {"right"}, asked.others()
