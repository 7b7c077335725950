"""What the service's processes share: bounded while they live, gone with them however they end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.export_cli import ModelStore
from tests.support.memory_use import shared_by
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png

CACHE_BYTES = 1_000_000
FEATURES_BYTES = 145 * 192 * 4  # at most this for one image of either embedded model
GATEWAY, ENCODER, DECODER = "diptych", "florence-2-mini-encoder", "florence-2-mini-decoder"
SHARED_FOLDER = Path("/dev/shm")


@pytest.fixture
def service(exported: ModelStore, tmp_path: Path) -> Iterator[RunningService]:
    with running_service(exported.home, tmp_path / "service.log", DIPTYCH_VISION_CACHE_MB="1") as running:
        yield running


def ask(service: RunningService, seed: int) -> httpx.Response:
    form, files = {"task": "ocr"}, {"image": scene_png(seed)}
    return httpx.post(f"{service.url}/v1/compare", data=form, files=files, timeout=60).raise_for_status()


def names_in_folder() -> set[str]:
    """Return what lies in the folder of shared memory, but for the semaphores of whatever runs beside the test."""
    names = {path.name for path in SHARED_FOLDER.iterdir()} if SHARED_FOLDER.exists() else set()
    return {name for name in names if not name.startswith("sem.")}


def test_shared_memory_is_the_gateways_and_bounded_by_the_cache(service: RunningService) -> None:
    for seed in range(30):
        ask(service, seed)
    shared = {part: shared_by(pid) for part, pid in service.parts().items()}
    (num_bytes,) = shared.pop(GATEWAY).values()
    assert CACHE_BYTES - 2 * FEATURES_BYTES < num_bytes <= CACHE_BYTES
    assert not any(shared.values())  # runners open it for one call


def test_nothing_is_left_of_processes_that_were_killed(service: RunningService) -> None:
    before = names_in_folder()
    for part in (ENCODER, DECODER, GATEWAY):
        expected = [answer["raw_text"] for answer in ask(service, 1).json()["answers"]]
        killed = service.parts()[part]
        os.kill(killed, signal.SIGKILL)
        service.wait_until_ready(60)
        assert service.parts()[part] != killed
        assert [answer["raw_text"] for answer in ask(service, 1).json()["answers"]] == expected
        memories = [name for pid in service.parts().values() for name in shared_by(pid)]
        assert len(memories) == 1  # of the gateway that lives
    assert names_in_folder() == before
