"""A labelling job: its journal survives wherever it is cut, and only for the same job."""

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from diptych_client import Answer, AnswerOptions, AsyncClient, InvalidRequest, TaskParameters
from diptych_client.cli.options import check_folders
from diptych_client.evaluation.job import Job, Journal, Record, ask
from diptych_client.inputs import Folder, ImageFile, find_images
from diptych_client.long_runs import FailureLog, RunError
from tests.support.client_answers import RESULTS, record
from tests.support.scripted_services import Received, Refusal, Script, Step, scripted, serving_rest

JOB = Job("some_task", "some-model", TaskParameters(labels=["a", "b"]), AnswerOptions(seed=1))
RECORDS = [record(result, f"sub/{index}.png") for index, result in enumerate(RESULTS)]
NUM_IMAGES = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a whole journal."""
    path = tmp_path / "new" / "journal.jsonl"
    with Journal.open(path, JOB) as journal:
        for entry in RECORDS:
            journal.append(entry)
    return path


def test_records_are_read_back(path: Path) -> None:
    job = {"task": "some_task", "model": "some-model", "labels": ["a", "b"], "seed": 1}
    assert json.loads(path.read_text().splitlines()[0]) == {"job": job}
    tuples = replace(JOB, parameters=TaskParameters(labels=("a", "b")))
    with Journal.open(path, tuples) as journal:
        assert list(journal.records.values()) == RECORDS
        name = RECORDS[0].image.name
        assert journal.has(ImageFile(name, 100, 1))
        for other in ((name, 101, 1), (name, 100, 2), ("other.png", 100, 1)):
            assert not journal.has(ImageFile(*other))


def test_last_of_two_answers_is_kept(path: Path) -> None:
    newer = record(RESULTS[1], RECORDS[0].image.name)
    odd = record(RESULTS[0], "caf\udce9.png")  # a name that is not UTF-8
    with Journal.open(path, JOB) as journal:
        journal.append(newer)
        journal.append(odd)
    with Journal.open(path, JOB) as journal:
        assert journal.records[newer.image.name] == newer
        assert journal.has(odd.image)
        assert len(journal.records) == len(RECORDS) + 1


def test_cut_journal_loses_only_its_last_line(path: Path) -> None:
    whole = path.read_bytes()
    line_ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in {*range(0, len(whole), 97), *line_ends, *(end + 1 for end in line_ends)}:
        path.write_bytes(whole[:length])
        num_complete = max(0, whole[:length].count(b"\n") - 1)
        with Journal.open(path, JOB) as journal:
            assert list(journal.records.values()) == RECORDS[:num_complete]
            for entry in RECORDS[num_complete:]:
                journal.append(entry)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, task="other_task"),
        replace(JOB, model="other-model"),
        replace(JOB, parameters=TaskParameters(labels=["a"])),
        replace(JOB, options=AnswerOptions(seed=2)),
    ],
)
def test_journal_of_another_job_is_refused(path: Path, job: Job) -> None:
    whole = path.read_bytes()
    message = r"belongs to another job: recorded .*choose another --out"
    with pytest.raises(RunError, match=message), Journal.open(path, job):
        pass
    assert path.read_bytes() == whole


@pytest.mark.parametrize("out", ["images", "images/out", "."])
def test_output_is_outside_the_images(tmp_path: Path, out: str) -> None:
    with pytest.raises(RunError, match="must be outside the image folder"):
        check_folders(tmp_path / "images", tmp_path / out)
    check_folders(tmp_path / "images", tmp_path / "images-annotations")


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
) -> tuple[dict[str, Record], dict[str, str]]:
    """Label the images without an answer; return the journal's records and the failures."""
    out = folder.with_name("out")

    num_finished = 0

    def advance() -> None:
        nonlocal num_finished
        num_finished += 1

    async def run(journal: Journal, failures: FailureLog) -> None:
        requests = [(image, JOB) for image in images or find_images(folder)]
        requests = [(image, job) for image, job in requests if not journal.has(image)]

        def add(image: ImageFile, _job: Job, answer: Answer, _latency_s: float) -> None:
            journal.append(Record(image, answer))

        async with AsyncClient(url, max_retries=0) as client:
            store = Folder(folder)
            await ask(client, store, requests, add, failures, concurrency, advance)
        assert num_finished == len(requests)

    with (
        Journal.open(out / "journal.jsonl", JOB) as journal,
        FailureLog(out / "failures.jsonl") as failures,
    ):
        asyncio.run(run(journal, failures))
    rows = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
    return journal.records, {row["image"]: row["code"] for row in rows}


def test_concurrency_is_reached_and_not_exceeded(folder: Path) -> None:
    script = ConcurrencyScript([])
    with serving_rest(script) as url:
        records, _ = label(folder, url, concurrency=4)
    assert (len(records), script.max_in_flight) == (NUM_IMAGES, 4)


def test_failed_image_is_retried_by_the_next_run(folder: Path) -> None:
    images = find_images(folder)
    (folder / "2.png").unlink()
    with scripted("rest", [Refusal("overloaded"), None]) as (url, script):
        records, failures = label(folder, url, 1, images)
        assert len(records) == NUM_IMAGES - 3
        assert failures == {
            "0.png": "overloaded",
            "1.png": "connection_failed",
            "2.png": "unreadable_file",
        }
        records, failures = label(folder, url, 1)
        assert (len(records), failures) == (NUM_IMAGES - 1, {})
        assert len(script.received) == NUM_IMAGES + 1


def test_error_of_every_image_ends_the_run(folder: Path) -> None:
    with scripted("rest", []) as (url, script):
        label(folder, url, 1, find_images(folder)[:2])
        script.steps.append(Refusal("invalid_request"))
        with pytest.raises(InvalidRequest):
            label(folder, url, 1)
        assert len(script.received) == 3
        assert len(label(folder, url, 1)[0]) == NUM_IMAGES
