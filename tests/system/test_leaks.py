"""Memory, descriptors and threads stay constant under errors and disconnecting clients."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png

NUM_CLIENTS = 8
NUM_ROUNDS = 12
NUM_REQUESTS = 400  # of a round
SETTINGS = {"DIPTYCH_VISION_CACHE_MB": "8", "DIPTYCH_GRPC_PORT": "0"}  # full after the first rounds
IMAGES = [scene_png(seed) for seed in range(64)]
# The floor of a round: work in progress raises single samples, a leak raises the lowest. Growth of
# the last rounds over the first that is allowed: MB, descriptors of idle connections, threads.
ALLOWED = {"memory_mb": 8, "num_fds": 2 * NUM_CLIENTS, "num_threads": 2}

Amounts = dict[tuple[str, str], float]  # by process and resource


def send(service: RunningService, number: int) -> None:
    form: dict[str, Any] = {"task": "captioning", "model": EMBEDDED[number % 2]}
    image = IMAGES[number % len(IMAGES)]
    match number % 8:
        case 0:
            assert service.predict(image, **form, colour="red").status_code == 400
        case 1:
            assert service.predict(b"no image", **form).status_code == 415
        case 2:
            late = service.predict(image, {"X-Deadline-Ms": "1"}, **form)
            assert late.status_code in (429, 504)
        case 3:
            with service.chunks(image, **form) as chunks:
                next(chunks)
        case 4:
            with service.client() as client, suppress(httpx.ReadTimeout):
                client.post("/v1/predict", data=form, files={"image": image}, timeout=0.03)
        case 5:
            assert "event: result" in service.predict(image, **form, stream=True).text
        case _:
            assert service.predict(image, **form).status_code == 200


def amounts(service: RunningService) -> Amounts:
    used = {}
    for name, pid in {"supervisor": service.process.pid, **service.parts()}.items():
        process = psutil.Process(pid)
        # without pages of files, whose shares change with other processes of the machine
        memory = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        (anonymous_kb,) = re.findall(r"Pss_Anon: +(\d+)", memory)
        used[name, "memory_mb"] = int(anonymous_kb) / 1e3
        used[name, "num_fds"] = process.num_fds()
        used[name, "num_threads"] = process.num_threads()
    return used


def lowest(samples: list[Amounts]) -> Amounts:
    return {key: min(sample[key] for sample in samples) for key in samples[0]}


@pytest.mark.long
def test_nothing_grows(exported: ModelStore, tmp_path: Path) -> None:
    floors = []
    with running_service(exported.home, tmp_path / "service.log", **SETTINGS) as service:
        for _ in range(NUM_ROUNDS):
            with ThreadPoolExecutor(NUM_CLIENTS) as pool:
                list(pool.map(partial(send, service), range(NUM_REQUESTS)))
            samples = []
            for _ in range(5):
                time.sleep(0.5)  # connections close meanwhile
                samples.append(amounts(service))
            floors.append(lowest(samples))
    assert len(floors[0]) == 4 * len(ALLOWED)  # supervisor, gateway, two runners
    third = NUM_ROUNDS // 3
    first = lowest(floors[third : 2 * third])  # after a warm-up
    last = lowest(floors[2 * third :])
    growths = {key: last[key] - first[key] for key in first}
    assert all(growth <= ALLOWED[resource] for (_, resource), growth in growths.items()), growths
