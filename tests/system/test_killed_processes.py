"""kill -9 of each process under load: ready again soon, nobody hangs, nobody gets another's
answer. kill -9 of the supervisor ends all.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.export_cli import ModelStore
from tests.support.load import Load, load
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService, forked_service
from tests.support.waiting import wait_until

NUM_CLIENTS = 10
GATEWAY = "diptych"
RUNNER = "florence-2-mini-runner"


@pytest.fixture(scope="module")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """A service that keeps no image features, so that every request is encoded."""
    folder = tmp_path_factory.mktemp("killed")
    with forked_service(
        exported.home, folder / "service.log", DIPTYCH_VISION_CACHE_MB="0"
    ) as running:
        yield running


def kill_under_load(service: RunningService, part: str) -> Load:
    with load(service.url, NUM_CLIENTS) as asked:
        asked.wait_for_more(2 * NUM_CLIENTS)
        killed = service.parts()[part]
        os.kill(killed, signal.SIGKILL)
        start_s = time.monotonic()
        while service.parts().get(part, killed) == killed:
            time.sleep(0.01)
        service.wait_until_ready()
        print(f"{part}: ready again after {time.monotonic() - start_s:.1f} s")
        asked.wait_for_more(2 * NUM_CLIENTS)
    print(f"{part}: {dict(asked.kinds())}, {asked.others()}")
    return asked


def test_a_killed_runner_costs_no_answer_but_streams_that_had_begun(
    service: RunningService,
) -> None:
    asked = kill_under_load(service, RUNNER)
    assert asked.kinds().keys() <= {"right", "refused", "cut"}
    assert {outcome.detail for outcome in asked.others()} <= {"not_ready"}
    assert len(asked.others()) <= NUM_CLIENTS


def test_a_killed_gateway_breaks_the_connections_that_it_had(service: RunningService) -> None:
    asked = kill_under_load(service, GATEWAY)
    assert asked.kinds().keys() <= {"right", "broken"}
    assert len(asked.others()) <= NUM_CLIENTS


def test_a_killed_supervisor_leaves_no_process(service: RunningService) -> None:
    """The last of this file."""
    processes = descendants(service.process.pid)
    assert len(processes) == 3  # the gateway and two runners
    service.process.kill()
    service.process.wait()
    wait_until(lambda: not any(map(is_alive, processes)))
