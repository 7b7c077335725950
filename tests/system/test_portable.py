"""DIPTYCH_PORTABLE: the service as on macOS, where no process finds what Linux alone has."""

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.export_cli import ModelStore
from tests.support.portable import WITHOUT_LINUX
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService, running_service
from tests.support.waiting import wait_until
from tests.system.test_answers import FLORENCE, REQUESTS, rounded
from tests.system.test_batches import URLS, create, ended, openai_client, output

RUNNER = f"{FLORENCE}-runner"
NUM_PARTS = 3  # the gateway and two runners
HEAVY_SIZE_WH = (6000, 5000)  # decoded in a process

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def portable(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("portable")
    settings = {"DIPTYCH_PORTABLE": "true", "DIPTYCH_BATCHES_FOLDER": str(folder / "batches")}
    log = folder / "service.log"
    with running_service(exported.home, log, **settings, **WITHOUT_LINUX) as running:
        yield running


def predict(service: RunningService, body: dict[str, Any]) -> Any:
    with service.client() as client:
        return client.post("/v1/predict", json=body).raise_for_status().json()["result"]


def lines() -> list[dict[str, Any]]:
    """Return a request of each task to each model that offers it."""
    bodies = [{"model": FLORENCE, "image": URLS[0]} | request for request in REQUESTS]
    return [
        {"custom_id": str(number), "method": "POST", "url": "/v1/predict", "body": body}
        for number, body in enumerate(bodies)
    ]


def test_answers_online_and_in_a_batch_are_those_of_linux(
    portable: RunningService, service: RunningService
) -> None:
    asked = lines()
    with openai_client(portable, "none") as client:
        batch = ended(client, create(client, asked))
        answers = output(client, batch.output_file_id)
    for line in asked:
        expected = rounded(predict(service, line["body"]))
        answer = answers[line["custom_id"]]["response"]["body"]["result"]
        assert rounded(answer) == expected
        assert rounded(predict(portable, line["body"])) == expected


def test_a_heavy_image_is_decoded_in_a_process(portable: RunningService) -> None:
    file = io.BytesIO()
    Image.new("RGB", HEAVY_SIZE_WH, (200, 30, 30)).save(file, "PNG")
    with portable.client() as client:
        form = {"task": "captioning"}
        client.post("/v1/predict", data=form, files={"image": file.getvalue()}).raise_for_status()


def test_a_killed_runner_comes_back(portable: RunningService) -> None:
    killed = portable.parts()[RUNNER]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: portable.parts().get(RUNNER, killed) != killed)
    portable.wait_until_ready()
    assert predict(portable, lines()[0]["body"])


def test_the_run_folder_is_a_temporary_one_and_a_killed_supervisor_leaves_no_process(
    portable: RunningService,
) -> None:
    """The last of this file."""
    processes = descendants(portable.process.pid)
    assert len(processes) == NUM_PARTS
    (folder,) = {Path(environment_of(pid)["PROMETHEUS_MULTIPROC_DIR"]).parent for pid in processes}
    assert not folder.is_relative_to("/dev/shm")
    portable.process.kill()
    portable.process.wait()
    wait_until(lambda: not any(map(is_alive, processes)))


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)
