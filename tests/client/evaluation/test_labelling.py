"""Labelling against a scripted server: concurrency and failures."""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from diptych_client import AnswerOptions, AsyncClient, InvalidRequest, TaskParameters
from diptych_client.evaluation.job import Job, Journal, Labeller, Record
from diptych_client.inputs import Folder, ImageFile, find_images
from diptych_client.long_runs import FailureLog
from tests.support.scripted_services import Received, Refusal, Script, Step, scripted, serving_rest

JOB = Job("ocr", "some-model", TaskParameters(), AnswerOptions())
NUM_IMAGES = 8


@dataclass(slots=True)
class ConcurrencyScript(Script):
    """Answers requests in groups of four and counts the requests in flight."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(4, timeout=60))
    lock: threading.Lock = field(default_factory=threading.Lock)
    num_in_flight: int = 0
    max_in_flight: int = 0

    def next_step(self, received: Received) -> Step:
        """Wait for the rest of the group."""
        with self.lock:
            self.num_in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
        self.barrier.wait()
        with self.lock:
            self.num_in_flight -= 1
        return Script.next_step(self, received)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(NUM_IMAGES):
        (folder / f"{index}.png").write_bytes(b"\xff\xd8\xff any bytes of a JPEG")
    return folder


def label(
    folder: Path, url: str, concurrency: int, images: Sequence[ImageFile] | None = None
) -> dict[str, Record]:
    """Label the images without an answer, into a sibling folder `out`.

    Return the records of the journal.
    """
    out = folder.with_name("out")

    async def run(labeller: Labeller, unlabelled: Sequence[ImageFile]) -> None:
        async with AsyncClient(url, max_retries=0) as client:
            await labeller.label(client, unlabelled, concurrency, lambda: None)

    with (
        Journal.open(out / "journal.jsonl", JOB) as journal,
        FailureLog(out / "failures.jsonl") as failures,
    ):
        unlabelled = [image for image in images or find_images(folder) if not journal.has(image)]
        asyncio.run(run(Labeller(Folder(folder), JOB, journal, failures), unlabelled))
    return journal.records


def failures(folder: Path) -> dict[str, str]:
    """Return the error code of every failed image."""
    lines = (folder.with_name("out") / "failures.jsonl").read_text().splitlines()
    return {line["image"]: line["code"] for line in map(json.loads, lines)}


def test_the_concurrency_is_reached_and_not_exceeded(folder: Path) -> None:
    script = ConcurrencyScript([])
    with serving_rest(script) as url:
        assert len(label(folder, url, concurrency=4)) == NUM_IMAGES
    assert script.max_in_flight == 4


def test_a_failed_image_affects_no_other_and_is_retried_by_the_next_run(folder: Path) -> None:
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


def test_an_error_that_affects_every_image_ends_the_run_and_keeps_the_answers(folder: Path) -> None:
    with scripted("rest", []) as (url, script):
        label(folder, url, 1, find_images(folder)[:2])
        script.steps.append(Refusal("invalid_request"))
        with pytest.raises(InvalidRequest):
            label(folder, url, 1)
        assert len(script.received) == 3
        assert len(label(folder, url, 1)) == NUM_IMAGES
