"""A runner that stands still: readiness goes false, requests end by their deadline, and all is well when it goes on."""

import os
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until

DEADLINE = {"X-Deadline-Ms": "1500"}


@pytest.fixture(scope="module")
def service(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    log = tmp_path_factory.mktemp("stuck") / "service.log"
    with running_service(exported.home, log, DIPTYCH_VISION_CACHE_MB="0") as running:
        yield running


def ask(service: RunningService, model: str, headers: dict[str, str]) -> httpx.Response:
    form, files = {"task": "ocr", "model": model}, {"image": scene_png()}
    return httpx.post(f"{service.url}/v1/predict", data=form, files=files, headers=headers, timeout=60)


def test_a_runner_that_stands_still_is_noticed_and_its_requests_end(service: RunningService) -> None:
    expected = ask(service, "florence-2-mini", {}).json()["raw_text"]
    stopped = service.parts()["florence-2-mini-runner"]
    os.kill(stopped, signal.SIGSTOP)
    try:
        wait_until(lambda: not service.is_ready())
        late = ask(service, "florence-2-mini", DEADLINE)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert ask(service, "paligemma-mini", {}).status_code == 200
    finally:
        os.kill(stopped, signal.SIGCONT)
    service.wait_until_ready(30)
    assert ask(service, "florence-2-mini", {}).json()["raw_text"] == expected
    assert service.parts()["florence-2-mini-runner"] == stopped
