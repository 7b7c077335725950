"""Labelling against a small server: so many at a time, and what a failure costs."""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client import AnswerOptions, AsyncClient, InvalidRequest, TaskParameters
from client.annotate import Failures, Job, Journal, Labeller, find_images, label_images
from client.annotate.images import ImageFile
from client.annotate.journal import Record
from tests.support.scripted_services import Received, Refusal, Script, scripted, serving_rest

JOB = Job("ocr", "some-model", TaskParameters(), AnswerOptions())
NUM_IMAGES = 8


@dataclass(slots=True)
class Together(Script):
    """Answers a request when as many as wanted are at work, and counts how many are."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(4, timeout=10))
    lock: threading.Lock = field(default_factory=threading.Lock)
    now: int = 0
    most: int = 0

    def next_step(self, received: Received) -> Refusal | str | None:
        """Wait for the others."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.barrier.wait()
        with self.lock:
            self.now -= 1
        return Script.next_step(self, received)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(NUM_IMAGES):
        (folder / f"{index}.png").write_bytes(b"any bytes")
    return folder


def label(folder: Path, url: str, concurrency: int, images: Sequence[ImageFile] | None = None) -> dict[str, Record]:
    """Label what waits in a folder, into a folder `out` beside it; return what the journal then has."""
    out = folder.with_name("out")

    async def run(labeller: Labeller, waiting: Sequence[ImageFile]) -> None:
        async with AsyncClient(url, max_retries=0) as client:
            await label_images(client, labeller, waiting, concurrency, lambda: None)

    with Journal.open(out / "journal.jsonl", JOB) as journal, Failures(out / "failures.jsonl") as failures:
        waiting = [image for image in images or find_images(folder) if not journal.has(image)]
        asyncio.run(run(Labeller(folder, JOB, journal, failures), waiting))
    return journal.records


def failures(folder: Path) -> dict[str, str]:
    """Return the code of every image that failed."""
    lines = (folder.with_name("out") / "failures.jsonl").read_text().splitlines()
    return {line["image"]: line["code"] for line in map(json.loads, lines)}


def test_so_many_requests_are_at_work_together_and_no_more(folder: Path) -> None:
    script = Together([])
    with serving_rest(script) as url:
        assert len(label(folder, url, concurrency=4)) == NUM_IMAGES
    assert script.most == 4


def test_an_image_that_fails_costs_no_other_and_is_tried_again(folder: Path) -> None:
    images = find_images(folder)
    (folder / "2.png").unlink()
    with scripted("rest", [Refusal("overloaded"), None]) as (url, script):
        assert len(label(folder, url, 1, images)) == NUM_IMAGES - 3
        assert failures(folder) == {
            "0.png": "overloaded",
            "1.png": "connection_failed",
            "2.png": "unreadable_file",
        }
        assert len(label(folder, url, 1)) == NUM_IMAGES - 1
        assert failures(folder) == {}
        assert len(script.received) == NUM_IMAGES + 1


def test_an_error_of_every_image_ends_the_run_and_keeps_what_was_answered(folder: Path) -> None:
    with scripted("rest", []) as (url, script):
        label(folder, url, 1, find_images(folder)[:2])
        script.steps.append(Refusal("invalid_request"))
        with pytest.raises(InvalidRequest):
            label(folder, url, 1)
        assert len(script.received) == 3
        assert len(label(folder, url, 1)) == NUM_IMAGES
