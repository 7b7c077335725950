"""The memory of an offline run depends neither on the number of images nor on the shards that are
done.
"""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from tests.support.export_cli import ModelStore
from tests.support.offline_runs import OfflineJob, actor_of, write_scenes
from tests.support.processes import resident_bytes

NUM_IMAGES = 100_000
NUM_SCENES = 64  # more than are in progress at a time, so that each image is decoded and encoded
SHARD_SIZE = 256
QUESTION = {"task": "captioning", "max_new_tokens": "1"}
MAX_RUN_S = 5400  # the run is measured by its memory; two busy cores take an hour
# One process, while four fifths of the images are answered: 400 bytes for each.
MAX_GROWTH_BYTES = 32_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory of both processes when some of the shards are done."""

    share_done: float
    worker_bytes: int
    driver_bytes: int


@pytest.mark.long
def test_memory_does_not_grow_with_the_images_that_are_answered(
    exported: ModelStore, tmp_path: Path
) -> None:
    scenes = sorted(write_scenes(tmp_path / "scenes", NUM_SCENES).iterdir())
    (tmp_path / "images").mkdir()
    for index in range(NUM_IMAGES):
        (tmp_path / "images" / f"{index:06}.png").hardlink_to(scenes[index % NUM_SCENES])
    job = OfflineJob(
        exported, "florence-2-mini", QUESTION, tmp_path / "images", tmp_path / "out", SHARD_SIZE
    )
    ended = threading.Event()
    with job.running() as run, ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(sampled, job, run, ended)
        try:
            stdout, stderr = run.communicate(timeout=MAX_RUN_S)
        finally:
            ended.set()
    assert run.returncode == 0, stderr
    assert f"{NUM_IMAGES} images in {job.output}; 0 failed\n" in stdout
    samples = sampling.result()
    early = [each for each in samples if 0.2 <= each.share_done < 0.3]
    late = [each for each in samples if 0.9 <= each.share_done < 1]
    for name in ("worker_bytes", "driver_bytes"):
        before = median(getattr(each, name) for each in early)
        after = median(getattr(each, name) for each in late)
        print(
            f"{name}: {before / 1e6:.0f} MB with a quarter of {NUM_IMAGES} images,"
            f" {after / 1e6:.0f} MB at the end"
        )
        assert after - before < MAX_GROWTH_BYTES


def sampled(job: OfflineJob, run: "subprocess.Popen[str]", ended: threading.Event) -> list[Sample]:
    """Return the memory of worker and driver, twice a second, until the run ends."""
    samples: list[Sample] = []
    num_parts = job.num_parts
    worker = None
    while not ended.wait(0.5):
        share_done = len(list(job.output.glob("part-*"))) / num_parts
        if share_done == 1:
            break  # the worker is about to end
        worker = worker or (actor_of(run) if share_done else None)
        if worker is not None:
            samples.append(Sample(share_done, resident_bytes(worker), resident_bytes(run.pid)))
    return samples
