"""A runner that stands still; kill -9 of each process under load: ready again soon, nobody hangs,
nobody gets another's answer. kill -9 of the supervisor ends all.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.processes import descendants, is_alive
from tests.support.running_service import GATEWAY, RunningService, forked_service
from tests.support.waiting import wait_until
from tests.system.load import Load, load

NUM_CLIENTS = 10
MODEL = EMBEDDED[0]


@pytest.fixture(scope="module")
def killed(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    """A service that keeps no image features, so that every request is encoded."""
    with forked_service(exported.home, folder / "log", DIPTYCH_VISION_CACHE_MB="0") as running:
        yield running


def kill_under_load(service: RunningService, part: str) -> Load:
    with load(service.url, NUM_CLIENTS) as clients:
        clients.wait_for_more(2 * NUM_CLIENTS)
        pid = service.send_signal(part, signal.SIGKILL)
        wait_until(lambda: service.parts().get(part, pid) != pid)
        service.wait_until_ready()
        clients.wait_for_more(2 * NUM_CLIENTS)
    assert len(clients.failures()) <= NUM_CLIENTS, clients.failures()
    return clients


def test_stopped_runner_is_noticed(killed: RunningService) -> None:
    fields: dict[str, Any] = {"task": "ocr", "model": MODEL}
    expected = killed.predict(**fields).json()["raw_text"]
    runner = killed.send_signal(f"{MODEL}-runner", signal.SIGSTOP)
    try:
        wait_until(lambda: not killed.is_ready())
        late = killed.predict(None, {"X-Deadline-Ms": "1500"}, **fields)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert killed.predict(task="ocr", model=EMBEDDED[1]).status_code == 200
    finally:
        os.kill(runner, signal.SIGCONT)
    killed.wait_until_ready()
    assert killed.predict(**fields).json()["raw_text"] == expected
    assert killed.parts()[f"{MODEL}-runner"] == runner


def test_killed_runner_costs_only_begun_streams(killed: RunningService) -> None:
    clients = kill_under_load(killed, f"{MODEL}-runner")
    assert clients.kinds().keys() <= {"right", "refused", "cut"}
    assert all("not_ready" in outcome.detail for outcome in clients.failures())


def test_killed_gateway_breaks_its_connections(killed: RunningService) -> None:
    assert kill_under_load(killed, GATEWAY).kinds().keys() <= {"right", "broken"}


def test_killed_supervisor_leaves_no_process(killed: RunningService) -> None:
    """The last of this service."""
    processes = descendants(killed.process.pid)
    assert len(processes) == 3  # the gateway and two runners
    killed.process.kill()
    killed.process.wait()
    wait_until(lambda: not any(map(is_alive, processes)))
