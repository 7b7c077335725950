"""`python -m offline` as a user runs it, with Ray and the embedded models."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.export_cli import ROOT, ModelStore
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService
from tests.support.scene_images import write_scenes
from tests.support.waiting import wait_until

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
NUM_SCENES = 60
DETECTION = {"task": "object_detection"}
QUESTIONS = {
    FLORENCE: DETECTION,
    PALIGEMMA: {"task": "instance_segmentation", "phrase": "circle"},
}
START_S = 120
RUN_S = 300
AGENTS_S = 180  # Ray's own agents look for their killed cluster for a minute
# A file system of fsspec's: to open a file of it kills the process.
KILLER = """
import os, signal
from fsspec import AbstractFileSystem

class KillerFiles(AbstractFileSystem):
    protocol = "killer"

    def open(self, path, mode="rb", **options):
        os.kill(os.getpid(), signal.SIGKILL)
"""
SCORE_TOLERANCE = 1e-3  # sums in float32 depend on the other sequences of a batch


@dataclass(frozen=True, slots=True)
class OfflineJob:
    """One job over a folder of images."""

    store: ModelStore
    model: str
    fields: Mapping[str, str]  # task included
    images: Path
    output: Path
    shard_size: int

    @property
    def num_parts(self) -> int:
        return -(-len(list(self.images.iterdir())) // self.shard_size)

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[str]"]:
        words = ["--model", self.model, "--task", self.fields["task"], "--output", str(self.output)]
        words += ["--shard-size", str(self.shard_size)]
        words += [f"-F{name}={value}" for name, value in self.fields.items() if name != "task"]
        process = subprocess.Popen(
            [sys.executable, "-m", "offline", str(self.images), *words],
            cwd=ROOT,
            env=os.environ | {"BENTOML_HOME": str(self.store.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self) -> "subprocess.CompletedProcess[str]":
        with self.running() as process:
            stdout, stderr = process.communicate(timeout=RUN_S)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def parts(self) -> dict[Path, int]:
        return {part: part.stat().st_mtime_ns for part in self.output.glob("part-*")}

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for part in sorted(self.output.glob("part-*.parquet")):
            rows += pq.read_table(part).to_pylist()
        for row in rows:
            row["result"] = json.loads(row["result"] or "null")
        return rows


def actor_of(run: "subprocess.Popen[str]") -> int | None:
    """Return the process that holds the model, or None before it starts."""
    for pid in descendants(run.pid):
        if "MapWorker" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    return None


@pytest.mark.parametrize(
    ("model", "task"),
    [(FLORENCE, "object_detection"), pytest.param(PALIGEMMA, "captioning", marks=pytest.mark.long)],
)
def test_actor_answers_as_the_service(
    exported: ModelStore, service: RunningService, model: str, task: str, tmp_path: Path
) -> None:
    files = sorted(write_scenes(tmp_path / "scenes", NUM_SCENES).iterdir())
    run = exported.forked("-m", "tests.support.offline_answers", model, task, *map(str, files))
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["key"] for row in rows] == list(map(str, files))
    for row, file in zip(rows, files, strict=True):
        assert_same(row, answer_of(service, {"task": task, "model": model}, file))


@pytest.mark.long
@pytest.mark.parametrize("model", [FLORENCE, PALIGEMMA])
def test_run_answers_as_the_service(
    exported: ModelStore, service: RunningService, model: str, tmp_path: Path
) -> None:
    """A broken image is a row with an error."""
    scenes = write_scenes(tmp_path / "scenes", NUM_SCENES)
    fields = QUESTIONS[model]
    broken = scenes / "0007.broken.png"
    broken.write_bytes((scenes / "0007.png").read_bytes()[:300])
    job = OfflineJob(exported, model, fields, scenes, tmp_path / "out", 25)
    run = job.run()
    assert run.returncode == 1, run.stderr
    assert f"{NUM_SCENES + 1} images in" in run.stdout
    assert run.stdout.endswith("; 1 failed\n")
    rows = {Path(row["key"]): row for row in job.rows()}
    assert list(rows) == sorted(scenes.iterdir())
    failed = rows.pop(broken)
    error = answer_of(service, fields | {"model": model}, broken)["error"]
    assert failed["error"] == {"code": error["code"], "message": error["message"]}
    assert (failed["result"], failed["width"], failed["height"]) == (None, 320, 240)
    for file, row in rows.items():
        assert_same(row, answer_of(service, fields | {"model": model}, file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--task", "object_detection", "--model", PALIGEMMA),
            "paligemma-mini does not offer object_detection",
        ),
        (
            ("--task", "captioning", "--model", FLORENCE, "--format", "coco"),
            "coco needs a task with boxes or masks",
        ),
    ],
)
def test_impossible_run_is_refused(
    exported: ModelStore, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    scenes = write_scenes(tmp_path / "scenes", 1)
    run = exported.forked("-m", "offline", str(scenes), *options, "--output", str(tmp_path / "out"))
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


def long_job(store: ModelStore, folder: Path) -> OfflineJob:
    scenes = write_scenes(folder / "scenes", 400)
    return OfflineJob(store, FLORENCE, DETECTION, scenes, folder / "out", 20)


def assert_complete(job: OfflineJob) -> None:
    rows = job.rows()
    assert [row["key"] for row in rows] == [str(path) for path in sorted(job.images.iterdir())]
    assert all(row["error"] is None for row in rows)
    assert len(list(job.output.iterdir())) == job.num_parts + 1  # and the manifest


@pytest.mark.long
def test_killed_worker_loses_and_repeats_nothing(exported: ModelStore, tmp_path: Path) -> None:
    job = long_job(exported, tmp_path)
    with job.running() as run:
        wait_until(lambda: len(job.parts()) >= 2 or run.poll() is not None, START_S)
        actor = actor_of(run)
        assert actor is not None
        os.kill(actor, signal.SIGKILL)
        assert len(job.parts()) < job.num_parts
        assert run.wait(RUN_S) == 0
    assert_complete(job)


@pytest.mark.long
def test_killed_run_resumes(exported: ModelStore, tmp_path: Path) -> None:
    job = long_job(exported, tmp_path)
    with job.running() as run:
        wait_until(lambda: len(job.parts()) >= 2 or run.poll() is not None, START_S)
        processes = descendants(run.pid)
        actor = actor_of(run)
        run.kill()
        run.wait()
    assert actor is not None
    wait_until(lambda: not is_alive(actor))
    done = job.parts()
    assert 2 <= len(done) < job.num_parts
    assert job.run().returncode == 0
    assert done.items() <= job.parts().items()
    assert_complete(job)
    captions = {"task": "captioning"}
    changed = OfflineJob(exported, FLORENCE, captions, job.images, job.output, job.shard_size).run()
    assert changed.returncode == 2
    assert 'fields: {"task": "object_detection"}, now {"task": "captioning"}' in changed.stderr
    wait_until(lambda: not any(map(is_alive, processes)), AGENTS_S)


@pytest.mark.long
def test_killer_images_are_rows_with_an_error(
    exported: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "packages" / "killer-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: killer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fsspec.specs]\nkiller = killer.KillerFiles\n")
    (info.parent / "killer.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", str(info.parent))
    images = list(map(str, sorted(write_scenes(tmp_path / "scenes", NUM_SCENES).iterdir())))
    killers = {25: "killer://first.png", 31: "killer://second.png"}
    for index, path in killers.items():
        images[index] = path
    table = tmp_path / "images.parquet"
    out = tmp_path / "out"
    pq.write_table(pa.table({"image": images}), table)
    job = OfflineJob(exported, FLORENCE, {"task": "captioning"}, table, out, 20)
    run = job.run()
    assert run.returncode == 1, run.stderr
    assert f"{NUM_SCENES} images in {out}; {len(killers)} failed\n" in run.stdout
    rows = job.rows()
    assert [row["key"] for row in rows] == images
    errors = {index: row["error"] for index, row in enumerate(rows) if row["error"] is not None}
    assert errors.keys() == killers.keys()
    assert {error["code"] for error in errors.values()} == {"worker_died"}


def answer_of(service: RunningService, fields: Mapping[str, Any], file: Path) -> dict[str, Any]:
    answer: dict[str, Any] = service.predict(file.read_bytes(), **fields).json()
    return answer


def assert_same(row: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Compare a row with an answer of the service; scores within the tolerance."""
    assert row["error"] is None
    for name in ("model", "task", "raw_text", "finish_reason", "calibrated"):
        assert row[name] == answer[name]
    assert {"width": row["width"], "height": row["height"]} == answer["image"]
    row_scores = pop_scores(row["result"])
    answer_scores = pop_scores(answer["result"])
    assert row["result"] == answer["result"]
    assert row_scores == pytest.approx(answer_scores, abs=SCORE_TOLERANCE)


def pop_scores(result: Mapping[str, Any]) -> list[float]:
    objects = chain.from_iterable(value for value in result.values() if isinstance(value, list))
    return [item.pop("score") for item in objects]
