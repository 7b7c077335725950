"""Memory does not grow with the images and answers of a run, only with their names and keys."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT
from tests.support.scene_images import scene_png
from tests.support.scripted_services import Script, serving_rest

CODE = """
import asyncio, resource, sys
from pathlib import Path
from diptych_client import AnswerOptions, AsyncClient, TaskParameters
from diptych_client.evaluation.questions import AnswerLog, Asker
from diptych_client.evaluation.evaluator import Evaluator
from diptych_client.evaluation.questions import Questionnaire
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.long_runs import FailureLog

folder, out, url = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

async def ask(asker, samples):
    async with AsyncClient(url) as client:
        await asker.ask(client, dataset.store, samples, "m", lambda: None)

dataset = read_dataset(folder)
questionnaire = Questionnaire("ocr", TaskParameters(), {}, ())
samples = list(questionnaire.samples(dataset))
log_path, failures_path = out / "answers.jsonl", out / "failures.jsonl"
with AnswerLog.open(log_path, "ocr", AnswerOptions()) as log, FailureLog(failures_path) as failures:
    asyncio.run(ask(Asker(log, failures, 8), samples))
    evaluation = Evaluator(log, ("m",), questionnaire.names).evaluate("d", samples, 0, 10)
assert evaluation.num_images == len(samples) and failures.num_failures == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class ForgetfulScript(Script):
    """Answers without a record of the requests."""

    def next_step(self, received):  # type: ignore[no-untyped-def]
        step = Script.next_step(self, received)
        self.received.clear()
        return step


def peak_kib(folder: Path, num_images: int) -> int:
    """Return the peak memory of a process that evaluates that many links to one image."""
    images = folder / f"{num_images}"
    out = folder / f"{num_images}-out"
    images.mkdir()
    original = folder / "original.png"
    original.write_bytes(scene_png())
    for index in range(num_images):
        os.symlink(original, images / f"{index:06}.png")
    with serving_rest(ForgetfulScript([])) as url:
        words = [sys.executable, "-c", CODE, str(images), str(out), url]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
        finished = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=True
        )
    return int(finished.stdout)


@pytest.mark.long
@pytest.mark.parametrize("num_images", [800, 100_000])
def test_an_image_costs_less_than_two_kilobytes(tmp_path: Path, num_images: int) -> None:
    few = peak_kib(tmp_path, 100)
    many = peak_kib(tmp_path, num_images)
    print(f"{few / 1024:.0f} MiB for 100 images, {many / 1024:.0f} MiB for {num_images}")
    assert many - few < 2 * num_images + 4096
