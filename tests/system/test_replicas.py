"""Two encoders and two decoders of one model as services of their own; one of each goes under load, and returns."""

import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from runners.builds import BUILD_HEADER
from tests.support.export_cli import ModelStore
from tests.support.load import load
from tests.support.replicas import MODEL, PARTS, Place, Replicas, replicas
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

NUM_CLIENTS = 8
STOP_S = 60


@pytest.fixture(scope="module")
def parts(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicas(exported, tmp_path_factory.mktemp("replicas")) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(parts: Replicas) -> RunningService:
    """A gateway that keeps no image features, so that every request needs an encoder and a decoder."""
    return parts.gateway(DIPTYCH_VISION_CACHE_MB="0")


def num_healthy(gateway: RunningService, part: str) -> float:
    return metric(gateway, "diptych_replicas", part=part, state="healthy")


def ejections(gateway: RunningService) -> dict[str, float]:
    return {part: metric(gateway, "diptych_replica_ejections_total", part=part) for part in PARTS}


def kill(parts: Replicas, place: Place) -> None:
    parts.kill(place)


def terminate(parts: Replicas, place: Place) -> None:
    process = parts.running[place].process
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_S) == 0


@pytest.mark.parametrize("end", [kill, terminate], ids=["kill -9", "SIGTERM"])
def test_nothing_is_lost_when_one_encoder_and_one_decoder_go_and_they_are_used_when_they_return(
    parts: Replicas, gateway: RunningService, service: RunningService, end: Callable[[Replicas, Place], None]
) -> None:
    ended, before = [parts.places[0], parts.places[2]], ejections(gateway)
    with load(gateway.url, NUM_CLIENTS, models=[MODEL], known_at=service.url) as asked:
        asked.wait_for_more(2 * NUM_CLIENTS)
        for place in ended:
            end(parts, place)
            asked.wait_for_more(2 * NUM_CLIENTS)
            wait_until(lambda place=place: num_healthy(gateway, place.part) == 1)  # type: ignore[misc]
        assert gateway.is_ready()
        parts.start(ended)
        for place in ended:
            wait_until(lambda place=place: num_healthy(gateway, place.part) == 2)  # type: ignore[misc]
        asked.wait_for_more(4 * NUM_CLIENTS)
    assert set(asked.kinds()) == {"right"}, asked.others()
    assert all(ejections(gateway)[part] > before[part] for part in PARTS)
    for place in ended:  # they have answered since they are back
        assert metric(parts.running[place], "diptych_batch_size_count") > 0


def test_without_a_decoder_the_answer_is_503_until_one_is_back(parts: Replicas, gateway: RunningService) -> None:
    decoders = [place for place in parts.places if place.part == "decoder"]
    for place in decoders:
        parts.kill(place)
    refused = ask(gateway)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert f"the decoder of {MODEL}" in refused.json()["error"]["message"]
    wait_until(lambda: not gateway.is_ready())
    parts.start(decoders)
    gateway.wait_until_ready(STOP_S)
    assert ask(gateway).status_code == 200


def test_a_runner_alone_answers_probes_and_metrics(parts: Replicas) -> None:
    for place in parts.places:
        with parts.running[place].client() as runner:
            assert {runner.get(path).status_code for path in ("/livez", "/readyz", "/metrics")} == {200}
            started = f'diptych_start_time_seconds{{model="{MODEL}",part="{place.part}"}}'
            assert started in runner.get("/metrics").text
            assert runner.get("/readyz", headers={BUILD_HEADER: "another"}).status_code == 409


def ask(gateway: RunningService) -> httpx.Response:
    form, files = {"task": "captioning", "model": MODEL}, {"image": scene_png(0)}
    return httpx.post(f"{gateway.url}/v1/predict", data=form, files=files, timeout=60)
