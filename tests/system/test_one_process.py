"""DIPTYCH_PROCESSES=one: a gateway that loads the models answers as several processes do."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.export_cli import EMBEDDED, ROOT, ModelStore
from tests.support.load import load
from tests.support.running_service import RunningService, forked_service
from tests.support.server_sent_events import parse_events
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

SCENE = (ROOT / "service" / "web" / "samples" / "scene.png").read_bytes()
MODEL = EMBEDDED[0]
GATEWAY = "diptych"
NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def one(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service of both models in one process."""
    log = tmp_path_factory.mktemp("one") / "service.log"
    with forked_service(exported.home, log, DIPTYCH_PROCESSES="one") as running:
        yield running


def ask(service: RunningService, **fields: str) -> httpx.Response:
    with service.client() as client:
        form = {"task": "open_vocabulary_detection", "labels": '["circle", "triangle"]'}
        response = client.post("/v1/predict", data=form | fields, files={"image": SCENE})
        return response.raise_for_status()


def answer(service: RunningService, model_id: str) -> dict[str, Any]:
    body: dict[str, Any] = ask(service, model=model_id).json()
    return {name: body[name] for name in ("result", "raw_text", "usage", "model")}


def test_answers_are_those_of_several_processes(
    one: RunningService, service: RunningService, model_id: str
) -> None:
    assert answer(one, model_id) == answer(service, model_id)


def test_a_stream_ends_with_the_answer(one: RunningService) -> None:
    *_, (name, end) = parse_events(ask(one, model=MODEL, stream="true").text)
    assert name == "result"
    assert end["result"] == answer(one, MODEL)["result"]


def test_no_model_has_a_process_and_metrics_are_those_of_all(one: RunningService) -> None:
    answer(one, MODEL)
    assert one.parts().keys() == {GATEWAY}
    assert metric(one, "diptych_vision_cache_requests_total", model=MODEL) > 0


def test_a_killed_process_breaks_its_connections_and_comes_back(one: RunningService) -> None:
    with load(one.url, NUM_CLIENTS) as asked:
        asked.wait_for_more(2 * NUM_CLIENTS)
        killed = one.parts()[GATEWAY]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: one.parts().get(GATEWAY, killed) != killed)
        one.wait_until_ready()
        asked.wait_for_more(2 * NUM_CLIENTS)
    assert asked.kinds().keys() <= {"right", "broken"}
    assert len(asked.others()) <= NUM_CLIENTS
