"""`python -m offline` as a user runs it, with Ray and the embedded models."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.export_cli import ModelStore
from tests.support.offline_runs import OfflineJob, actor_of, parquet_rows, write_scenes
from tests.support.processes import descendants, is_alive
from tests.support.waiting import wait_until

FLORENCE, PALIGEMMA = "florence-2-mini", "paligemma-mini"
NUM_SCENES = 60
QUESTIONS = {
    FLORENCE: {"task": "object_detection"},
    PALIGEMMA: {"task": "instance_segmentation", "phrase": "circle"},
}
START_S, RUN_S = 120, 300
SCORE_TOLERANCE = 1e-3  # sums in float32 depend on the other sequences of a batch


@pytest.mark.parametrize("model_id", [FLORENCE, pytest.param(PALIGEMMA, marks=pytest.mark.long)])
def test_the_answers_are_those_of_the_service_and_a_broken_image_is_a_row_with_an_error(
    exported: ModelStore, client: httpx.Client, model_id: str, tmp_path: Path
) -> None:
    scenes, fields = write_scenes(tmp_path / "scenes", NUM_SCENES), QUESTIONS[model_id]
    (scenes / "0007.broken.png").write_bytes((scenes / "0007.png").read_bytes()[:300])
    run = OfflineJob(exported, model_id, fields, scenes, tmp_path / "out", 25).run()
    assert run.returncode == 1, run.stderr
    assert "61 images in" in run.stdout
    assert run.stdout.endswith("; 1 failed\n")
    rows = {Path(str(row["key"])).name: row for row in parquet_rows(tmp_path / "out")}
    assert list(rows) == sorted(path.name for path in scenes.iterdir())
    for name, row in rows.items():
        files = {"image": (scenes / name).read_bytes()}
        answer = client.post("/v1/predict", data={**fields, "model": model_id}, files=files).json()
        if "error" in answer:
            assert name == "0007.broken.png"
            assert row["error"] == {key: answer["error"][key] for key in ("code", "message")}
            assert (row["result"], row["width"]) == (None, 320)
            continue
        expected = {key: answer[key] for key in ("model", "task", "raw_text", "finish_reason", "calibrated")}
        expected |= {**answer["image"], "result": answer["result"], "error": None}
        assert scores_of(row) == pytest.approx(scores_of(expected), abs=SCORE_TOLERANCE)
        assert without_scores({key: value for key, value in row.items() if key != "key"}) == without_scores(expected)


@pytest.mark.long
def test_a_killed_worker_is_started_again_and_no_image_is_lost_or_twice(exported: ModelStore, tmp_path: Path) -> None:
    job = long_job(exported, tmp_path)
    with job.running() as run:
        wait_until(lambda: num_parts(job) >= 2 or run.poll() is not None, START_S)
        actor = actor_of(run)
        assert actor is not None
        os.kill(actor, signal.SIGKILL)
        before = num_parts(job)
        assert run.wait(RUN_S) == 0
    assert before < job.num_parts
    assert_complete(job)


@pytest.mark.long
def test_a_killed_run_resumes_and_no_image_is_lost_or_twice(exported: ModelStore, tmp_path: Path) -> None:
    job = long_job(exported, tmp_path)
    with job.running() as run:
        wait_until(lambda: num_parts(job) >= 2 or run.poll() is not None, START_S)
        processes = descendants(run.pid)
        run.kill()
        run.wait()
    wait_until(lambda: not any(map(is_alive, processes)))
    done = {part: part.stat().st_mtime_ns for part in job.output.glob("part-*")}
    assert 2 <= len(done) < job.num_parts
    assert job.run().returncode == 0
    assert {part: part.stat().st_mtime_ns for part in done} == done
    assert_complete(job)
    changed = OfflineJob(exported, FLORENCE, {"task": "captioning"}, job.images, job.output, job.shard_size).run()
    assert changed.returncode == 2
    assert 'fields: {"task": "object_detection"}, now {"task": "captioning"}' in changed.stderr


def scores_of(row: dict[str, Any]) -> list[float]:
    return [each["score"] for objects in row["result"].values() for each in objects]


def without_scores(row: dict[str, Any]) -> dict[str, Any]:
    result = {
        kind: [{name: value for name, value in each.items() if name != "score"} for each in objects]
        for kind, objects in row["result"].items()
    }
    return row | {"result": result}


def long_job(store: ModelStore, folder: Path) -> OfflineJob:
    return OfflineJob(store, FLORENCE, QUESTIONS[FLORENCE], write_scenes(folder / "scenes", 400), folder / "out", 20)


def num_parts(job: OfflineJob) -> int:
    return len(list(job.output.glob("part-*")))


def assert_complete(job: OfflineJob) -> None:
    rows = parquet_rows(job.output)
    assert [row["key"] for row in rows] == [str(path) for path in sorted(job.images.iterdir())]
    assert all(row["error"] is None for row in rows)
    assert len(list(job.output.iterdir())) == job.num_parts + 1  # and the manifest
