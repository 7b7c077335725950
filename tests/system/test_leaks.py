"""Memory, descriptors and threads stay constant under errors and disconnecting clients."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png

NUM_CLIENTS = 8
NUM_ROUNDS = 12
NUM_REQUESTS = 400  # of a round
SETTINGS = {"DIPTYCH_VISION_CACHE_MB": "8", "DIPTYCH_GRPC_PORT": "0"}  # full after the first rounds
IMAGES = [scene_png(seed) for seed in range(64)]
MODELS = ("florence-2-mini", "paligemma-mini")
# The floor of a round: work in progress raises single samples, a leak raises the lowest. Growth of
# the last rounds over the first that is allowed: MB, descriptors of idle connections, threads.
ALLOWED = {"memory_mb": 15, "num_fds": 2 * NUM_CLIENTS, "num_threads": 2}


def send(service: RunningService, number: int) -> None:
    """Send a request: an answer, a stream, an error of each kind, or a client that disconnects."""
    form = {"task": "captioning", "model": MODELS[number % 2]}
    image = {"image": IMAGES[number % len(IMAGES)]}
    stream = form | {"stream": "true"}
    with httpx.Client(base_url=service.url, timeout=60) as client:
        match number % 8:
            case 0:
                assert client.post("/v1/predict", data=form | {"colour": "red"}).status_code == 400
            case 1:
                wrong = {"image": b"no image"}
                assert client.post("/v1/predict", data=form, files=wrong).status_code == 415
            case 2:
                headers = {"X-Deadline-Ms": "1"}
                late = client.post("/v1/predict", data=form, files=image, headers=headers)
                assert late.status_code in (429, 504)
            case 3:
                with client.stream("POST", "/v1/predict", data=stream, files=image) as response:
                    next(response.iter_lines())
            case 4:
                with suppress(httpx.ReadTimeout):
                    client.post("/v1/predict", data=form, files=image, timeout=0.03)
            case 5:
                text = client.post("/v1/predict", data=stream, files=image).text
                assert "event: result" in text
            case _:
                assert client.post("/v1/predict", data=form, files=image).status_code == 200


def uses(service: RunningService) -> Iterator[tuple[str, str, float]]:
    """Yield process, resource and its amount, of the supervisor and of all parts."""
    for name, pid in {"supervisor": service.process.pid, **service.parts()}.items():
        process = psutil.Process(pid)
        yield name, "memory_mb", process.memory_full_info().pss / 1e6
        yield name, "num_fds", process.num_fds()
        yield name, "num_threads", process.num_threads()


@pytest.mark.long
def test_nothing_grows(exported: ModelStore, tmp_path: Path) -> None:
    floors: list[dict[tuple[str, str], float]] = []
    with running_service(exported.home, tmp_path / "service.log", **SETTINGS) as service:
        for _ in range(NUM_ROUNDS):
            with ThreadPoolExecutor(NUM_CLIENTS) as pool:
                list(pool.map(lambda number: send(service, number), range(NUM_REQUESTS)))
            floor: dict[tuple[str, str], float] = {}
            for _ in range(5):
                threading.Event().wait(0.5)  # connections close meanwhile
                for process, resource, amount in uses(service):
                    key = process, resource
                    floor[key] = min(amount, floor.get(key, amount))
            floors.append(floor)
    assert len(floors[0]) == 4 * len(ALLOWED)  # supervisor, gateway, two runners
    third = NUM_ROUNDS // 3
    growths = {}
    for key in floors[0]:
        first, last = floors[third : 2 * third], floors[2 * third :]  # after a warm-up
        growths[key] = min(floor[key] for floor in last) - min(floor[key] for floor in first)
    print(json.dumps({" ".join(key): growth for key, growth in growths.items()}))
    assert all(growth <= ALLOWED[resource] for (_, resource), growth in growths.items()), growths
