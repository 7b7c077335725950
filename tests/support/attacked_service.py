"""A service under attack, its memory and processes, and a polite client meanwhile."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.support.processes import image_decoders
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png

POLITE = "key-of-a-polite-client"
ATTACKERS_ADDRESS = "127.0.0.2"


@dataclass(frozen=True, slots=True)
class Attacked:
    service: RunningService
    resident_before: int  # gateway's memory, bytes

    @property
    def resident(self) -> int:
        gateway = self.service.parts()["diptych"]
        return int(Path(f"/proc/{gateway}/statm").read_text().split()[1]) * 4096

    def url(self, path: str) -> str:
        return self.service.url + path

    def connect(self, address: str = ATTACKERS_ADDRESS) -> socket.socket:
        url = httpx.URL(self.service.url)
        return socket.create_connection((url.host, url.port or 80), source_address=(address, 0))

    def decoders(self) -> list[psutil.Process]:
        """Return the gateway's processes that decode an image."""
        return image_decoders(self.service.parts()["diptych"])

    def post(self, key: str, image: bytes, **headers: str) -> httpx.Response:
        headers |= {"Authorization": f"Bearer {key}"}
        form = {"task": "captioning", "max_new_tokens": "4"}
        return httpx.post(
            self.url("/v1/predict"), data=form, files={"image": image}, headers=headers, timeout=60
        )


@contextmanager
def polite_clients(attacked: Attacked) -> Iterator[None]:
    """Send requests one after the other; each must be answered."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.05):
            response = attacked.post(POLITE, scene_png())
            assert response.status_code == 200, response.text

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            yield
        finally:
            ended.set()
            asking.result()
