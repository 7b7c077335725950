"""DIPTYCH_PORTABLE: the service as on macOS, where no process finds what Linux alone has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.export_cli import ModelStore
from tests.support.portable import WITHOUT_LINUX
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService, running_service
from tests.support.waiting import wait_until
from tests.system.test_answers import FLORENCE, REQUESTS, rounded
from tests.system.test_batches import URLS, create, ended, openai_client, output, request_line

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def portable(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    settings = {"DIPTYCH_PORTABLE": "true", "DIPTYCH_BATCHES_FOLDER": str(folder / "batches")}
    log = folder / "service.log"
    with running_service(exported.home, log, **settings, **WITHOUT_LINUX) as running:
        yield running


def result(service: RunningService, body: dict[str, Any]) -> Any:
    with service.client() as client:
        response = client.post("/v1/predict", json=body)
        return rounded(response.raise_for_status().json()["result"])


def test_answers_are_those_of_linux(portable: RunningService, service: RunningService) -> None:
    bodies = [{"model": FLORENCE, "image": URLS[0]} | request for request in REQUESTS]
    lines = [request_line(str(n), "/v1/predict", body) for n, body in enumerate(bodies)]
    with openai_client(portable, "none") as client:
        answers = output(client, ended(client, create(client, lines)).output_file_id)
    for number, body in enumerate(bodies):
        expected = result(service, body)
        assert rounded(answers[str(number)]["result"]) == expected
        assert result(portable, body) == expected


def test_killed_supervisor_leaves_no_process(portable: RunningService) -> None:
    """The last of this file."""
    processes = descendants(portable.process.pid)
    assert len(processes) == 3  # the gateway and two runners
    variable = "PROMETHEUS_MULTIPROC_DIR"
    (folder,) = {psutil.Process(pid).environ()[variable] for pid in processes}
    assert not Path(folder).is_relative_to("/dev/shm")
    portable.process.kill()
    portable.process.wait()
    wait_until(lambda: not any(map(is_alive, processes)))
