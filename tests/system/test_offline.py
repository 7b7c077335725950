"""`python -m offline` as a user runs it, with Ray and the embedded models."""

import json
import os
import signal
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.export_cli import ModelStore
from tests.support.offline_runs import (
    OfflineJob,
    actor_of,
    install_killer_files,
    parquet_rows,
    write_scenes,
)
from tests.support.processes import descendants, is_alive
from tests.support.waiting import wait_until

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
NUM_SCENES = 60
QUESTIONS = {
    FLORENCE: {"task": "object_detection"},
    PALIGEMMA: {"task": "instance_segmentation", "phrase": "circle"},
}
START_S = 120
RUN_S = 300
AGENTS_S = 180  # Ray's own agents look for their killed cluster for a minute
SCORE_TOLERANCE = 1e-3  # sums in float32 depend on the other sequences of a batch


@pytest.mark.parametrize(
    ("model_id", "task"),
    [(FLORENCE, "object_detection"), pytest.param(PALIGEMMA, "captioning", marks=pytest.mark.long)],
)
def test_the_model_of_an_actor_answers_as_the_service(
    exported: ModelStore, client: httpx.Client, model_id: str, task: str, tmp_path: Path
) -> None:
    files = sorted(write_scenes(tmp_path / "scenes", NUM_SCENES).iterdir())
    run = exported.forked("-m", "tests.support.offline_answers", model_id, task, *map(str, files))
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["key"] for row in rows] == [str(file) for file in files]
    for row, file in zip(rows, files, strict=True):
        assert_same(row, predicted(client, {"task": task, "model": model_id}, file))


@pytest.mark.long
@pytest.mark.parametrize("model_id", [FLORENCE, PALIGEMMA])
def test_a_run_answers_as_the_service_and_a_broken_image_is_a_row_with_an_error(
    exported: ModelStore, client: httpx.Client, model_id: str, tmp_path: Path
) -> None:
    scenes = write_scenes(tmp_path / "scenes", NUM_SCENES)
    fields = QUESTIONS[model_id]
    broken = scenes / "0007.broken.png"
    broken.write_bytes((scenes / "0007.png").read_bytes()[:300])
    run = OfflineJob(exported, model_id, fields, scenes, tmp_path / "out", 25).run()
    assert run.returncode == 1, run.stderr
    assert f"{NUM_SCENES + 1} images in" in run.stdout
    assert run.stdout.endswith("; 1 failed\n")
    rows = {Path(row["key"]): row for row in parquet_rows(tmp_path / "out")}
    assert list(rows) == sorted(scenes.iterdir())
    failed = rows.pop(broken)
    error = predicted(client, fields | {"model": model_id}, broken)["error"]
    assert failed["error"] == {"code": error["code"], "message": error["message"]}
    assert (failed["result"], failed["width"], failed["height"]) == (None, 320, 240)
    for file, row in rows.items():
        assert_same(row, predicted(client, fields | {"model": model_id}, file))


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
def test_what_the_model_cannot_do_is_refused_before_the_run(
    exported: ModelStore, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    scenes = write_scenes(tmp_path / "scenes", 1)
    run = exported.forked("-m", "offline", str(scenes), *options, "--output", str(tmp_path / "out"))
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_killed_worker_is_started_again_and_no_image_is_lost_or_twice(
    exported: ModelStore, tmp_path: Path
) -> None:
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
def test_a_killed_run_resumes_and_no_image_is_lost_or_twice(
    exported: ModelStore, tmp_path: Path
) -> None:
    job = long_job(exported, tmp_path)
    with job.running() as run:
        wait_until(lambda: num_parts(job) >= 2 or run.poll() is not None, START_S)
        processes = descendants(run.pid)
        actor = actor_of(run)
        run.kill()
        run.wait()
    assert actor is not None
    wait_until(lambda: not is_alive(actor))
    done = {part: part.stat().st_mtime_ns for part in job.output.glob("part-*")}
    assert 2 <= len(done) < job.num_parts
    assert job.run().returncode == 0
    assert {part: part.stat().st_mtime_ns for part in done} == done
    assert_complete(job)
    changed = OfflineJob(
        exported, FLORENCE, {"task": "captioning"}, job.images, job.output, job.shard_size
    ).run()
    assert changed.returncode == 2
    assert 'fields: {"task": "object_detection"}, now {"task": "captioning"}' in changed.stderr
    wait_until(lambda: not any(map(is_alive, processes)), AGENTS_S)


@pytest.mark.long
def test_an_image_that_kills_its_worker_is_a_row_with_an_error(
    exported: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(install_killer_files(tmp_path / "packages")))
    killers = {25: "killer://first.png", 31: "killer://second.png"}
    images: list[str] = [
        str(path) for path in sorted(write_scenes(tmp_path / "scenes", NUM_SCENES).iterdir())
    ]
    images = [killers.get(index, path) for index, path in enumerate(images)]
    pq.write_table(pa.table({"image": images}), tmp_path / "images.parquet")
    run = OfflineJob(
        exported,
        FLORENCE,
        {"task": "captioning"},
        tmp_path / "images.parquet",
        tmp_path / "out",
        20,
    ).run()
    assert run.returncode == 1, run.stderr
    assert f"{NUM_SCENES} images in {tmp_path / 'out'}; {len(killers)} failed\n" in run.stdout
    rows = parquet_rows(tmp_path / "out")
    assert [row["key"] for row in rows] == images
    codes = {
        index: row["error"]["code"] for index, row in enumerate(rows) if row["error"] is not None
    }
    assert codes == dict.fromkeys(killers, "worker_died")


def predicted(client: httpx.Client, fields: Mapping[str, str], file: Path) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(
        "/v1/predict", data=fields, files={"image": file.read_bytes()}
    ).json()
    return answer


def assert_same(row: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
    """Compare a row with an answer of the service; scores within the tolerance."""
    assert row["error"] is None
    for name in ("model", "task", "raw_text", "finish_reason", "calibrated"):
        assert row[name] == answer[name]
    assert {"width": row["width"], "height": row["height"]} == answer["image"]
    assert without_scores(row["result"]) == without_scores(answer["result"])
    assert scores(row["result"]) == pytest.approx(scores(answer["result"]), abs=SCORE_TOLERANCE)


def without_scores(result: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(result)
    for kind, value in result.items():
        if not isinstance(value, str):
            found[kind] = [{**each, "score": None} for each in value]
    return found


def scores(result: Mapping[str, Any]) -> list[float]:
    items = chain.from_iterable(value for value in result.values() if not isinstance(value, str))
    return [each["score"] for each in items]


def long_job(store: ModelStore, folder: Path) -> OfflineJob:
    return OfflineJob(
        store,
        FLORENCE,
        QUESTIONS[FLORENCE],
        write_scenes(folder / "scenes", 400),
        folder / "out",
        20,
    )


def num_parts(job: OfflineJob) -> int:
    return len(list(job.output.glob("part-*")))


def assert_complete(job: OfflineJob) -> None:
    rows = parquet_rows(job.output)
    assert [row["key"] for row in rows] == [str(path) for path in sorted(job.images.iterdir())]
    assert all(row["error"] is None for row in rows)
    assert len(list(job.output.iterdir())) == job.num_parts + 1  # and the manifest
