"""`python -m offline` as a user runs it, with Ray and the embedded models."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from offline.output import Row, RowError, write_rows
from tests.support.export_cli import ROOT, ModelStore
from tests.support.forked_python import run as run_forked
from tests.support.processes import descendants, is_alive
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until

FLORENCE = "florence-2-mini"
NUM_SCENES = 60
SHARD_SIZE = 20
START_S = 120
RUN_S = 300
STOP_S = 30
AGENTS_S = 180  # Ray's own agents look for their killed cluster for a minute
SCORE_TOLERANCE = 1e-3  # sums in float32 depend on the other sequences of a batch


def write_scenes(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for seed in range(count):
        (folder / f"{seed:04}.png").write_bytes(scene_png(seed))
    return folder


@dataclass(frozen=True, slots=True)
class OfflineJob:
    """One job over images; its options are those of the command."""

    store: ModelStore
    images: Path
    output: Path
    options: str

    @contextmanager
    def running(self) -> Iterator["subprocess.Popen[str]"]:
        words = ["--output", str(self.output), "--shard-size", str(SHARD_SIZE)]
        command = [sys.executable, "-m", "offline", str(self.images), *words, *self.options.split()]
        options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options |= {"cwd": ROOT, "env": os.environ | {"BENTOML_HOME": str(self.store.home)}}
        with subprocess.Popen(command, **options) as process:
            try:
                yield process
            finally:
                process.kill()

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


def folder_of(run: "subprocess.Popen[str]") -> Path:
    (command,) = psutil.Process(run.pid).children()
    return Path(command.environ()["TMPDIR"])


def processes_in(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                processes.append(process)
    return processes


def stop(run: "subprocess.Popen[str]", number: signal.Signals) -> None:
    """End a run by a signal, which is repeated; nothing of it is left but its output."""
    folder = folder_of(run)
    for _ in range(3):
        run.send_signal(number)
    _, stderr = run.communicate(timeout=STOP_S)
    assert run.returncode == 128 + number
    resume = f"python -m offline: ended by {number.name}; the same command resumes"
    assert stderr.splitlines()[-1] == resume
    assert "Traceback" not in stderr
    assert "Stack" not in stderr
    assert not folder.exists()
    assert not processes_in(folder)


def actor_of(run: "subprocess.Popen[str]") -> int:
    """Return the process that holds the model."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(run.pid)}
    return next(pid for pid, command in commands.items() if "MapWorker" in command)


def test_actor_answers_as_the_service(
    exported: ModelStore, service: RunningService, tmp_path: Path
) -> None:
    """A broken image is a row with an error."""
    fields: Any = {"model": FLORENCE, "task": "object_detection"}
    files = sorted(write_scenes(tmp_path / "scenes", NUM_SCENES).iterdir())
    broken = files[7]
    broken.write_bytes(broken.read_bytes()[:300])
    command = ("-m", "tests.system.offline_answers", *fields.values(), *map(str, files))
    run = exported.forked(*command)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["key"] for row in rows] == list(map(str, files))
    for row, file in zip(rows, files, strict=True):
        answer = service.predict(file.read_bytes(), **fields).json()
        if file != broken:
            assert_same(row, answer)
            continue
        error = answer["error"]
        assert row["error"] == {"code": error["code"], "message": error["message"]}
        assert (row["result"], row["width"], row["height"]) == (None, 320, 240)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("object_detection --model paligemma-mini", "paligemma-mini does not offer object_dete"),
        ("captioning --model florence-2-mini --format coco", "coco needs a task with boxes or"),
    ],
)
def test_impossible_run_is_refused(
    exported: ModelStore, options: str, message: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    scenes = str(write_scenes(tmp_path / "scenes", 1))
    words = ("--output", str(output), "--task", *options.split())
    run = exported.forked("-m", "offline", scenes, *words)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert not output.exists()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The longest temporary folder that a run may be given."""
    with TemporaryDirectory(prefix="of-26-bytes--", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def test_longer_temporary_folder_is_refused(temporary: Path) -> None:
    longer = Path(f"{temporary}-")
    longer.mkdir()
    try:
        run = run_forked(("-m", "offline"), os.environ | {"TMPDIR": str(longer)})
    finally:
        longer.rmdir()
    assert (run.returncode, run.stdout) == (2, "")
    assert f"{longer} has more than 26 bytes" in run.stderr


def test_signals_while_starting_and_writing(
    exported: ModelStore, temporary: Path, tmp_path: Path
) -> None:
    """A run resumes after a signal; failed images have an exit status of their own."""
    scenes = write_scenes(tmp_path / "scenes", 1)
    options = f"--model {FLORENCE} --task object_detection --format coco"
    job = OfflineJob(exported, scenes, tmp_path / "out", options)
    with job.running() as run:
        wait_until(lambda: (job.output / "job.json").exists() or run.poll() is not None, START_S)
        wait_until(lambda: list(folder_of(run).glob("session_*/sockets/raylet")), START_S)
        assert len(processes_in(folder_of(run))) > 1
        stop(run, signal.SIGTERM)
    part = job.output / "part-00000000.parquet"
    os.mkfifo(part)  # to read it takes for ever
    with job.running() as run:
        wait_until(lambda: list(job.output.glob(".incomplete/annotations*")), START_S)
        stop(run, signal.SIGINT)
    part.unlink()
    row = Row("0000.png", FLORENCE, "object_detection", error=RowError("internal", "broken"))
    with part.open("wb") as stream:
        write_rows(stream, [row], "parquet")
    resumed = job.run()
    assert resumed.returncode == 3, resumed.stderr
    assert f"1 images in {job.output}; 1 failed\n" in resumed.stdout
    assert not list(temporary.iterdir())


@pytest.mark.long
@pytest.mark.usefixtures("temporary")
def test_kills_lose_and_repeat_nothing(exported: ModelStore, tmp_path: Path) -> None:
    """First of the worker, then of the run, which is resumed."""
    scenes = write_scenes(tmp_path / "scenes", 400)
    options = f"--model {FLORENCE} --task object_detection"
    job = OfflineJob(exported, scenes, tmp_path / "out", options)
    with job.running() as run:
        wait_until(lambda: len(job.parts()) >= 2 or run.poll() is not None, START_S)
        os.kill(actor_of(run), signal.SIGKILL)
        wait_until(lambda: len(job.parts()) >= 5 or run.poll() is not None, START_S)
        processes = descendants(run.pid)
        actor = actor_of(run)
    wait_until(lambda: not is_alive(actor))
    done = job.parts()
    assert 5 <= len(done) < 400 / SHARD_SIZE
    assert job.run().returncode == 0
    assert done.items() <= job.parts().items()
    rows = job.rows()
    assert [row["key"] for row in rows] == list(map(str, sorted(scenes.iterdir())))
    assert all(row["error"] is None for row in rows)
    assert len(list(job.output.iterdir())) == 400 / SHARD_SIZE + 1  # and the manifest
    wait_until(lambda: not any(map(is_alive, processes)), AGENTS_S)


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
