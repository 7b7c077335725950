"""Answers of real models with drafts against those without: all tasks with a grammar or a forced
token, with labels, phrases and regions. Those without are transformers' (test_decoders.py).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from export.checks.asking import Question
from export.scenes import render_scene
from laboratory.bench.material import scene_requests
from laboratory.scenes import evaluation_scene
from runners.decoder.engines import EagerEngine, NewEngine
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.encoder.session import load_encoder
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from tasks.errors import TaskError
from tests.support.catalog import CATALOG
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.passes import WithoutDrafts
from wire.artifacts.manifest import read_manifest

NUM_ANSWERS = 20
BESIDE = 3  # requests in flight, so that drafts of different lengths share a pass
TIMEOUT_S = 3600.0


Model = tuple[Decoder, list[SequenceRequest]]  # a decoder, and requests to it


@pytest.fixture(scope="module", params=EMBEDDED)
def model(request: pytest.FixtureRequest, exported: ModelStore) -> Model:
    folder = exported.newest(request.param)
    entry = CATALOG[request.param]
    decoder = load_decoder(folder, read_manifest(folder).family, "float32", "cpu")
    encoder = load_encoder(folder, precision="float32")
    size_wh = (entry.resolution, entry.resolution)
    requests: list[SequenceRequest] = []
    for scene in map(evaluation_scene, range(2)):
        image = render_scene(scene, entry.resolution)
        features = encoder.encode(np.asarray(image)[None])[0]
        for scene_request in scene_requests(scene, entry.resolution):
            task, parameters = scene_request.task, scene_request.parameters
            with suppress(TaskError):  # not offered
                for prompt in Question.of_task(entry, task, parameters, size_wh):
                    requests.append(prompt.request(decoder, features, 128, num_beams=1))
    return decoder, requests[:NUM_ANSWERS]


def generate(
    decoder: Decoder,
    requests: Sequence[SequenceRequest],
    num_clients: int,
    make_engine: NewEngine = EagerEngine,
) -> list[GeneratedSequence]:
    """Generate the answers to `requests`, `num_clients` at a time."""
    limits = SchedulerLimits(num_clients, num_clients, 4096)
    scheduler = Scheduler(decoder, "drafts", limits, make_engine)

    def answer(request: SequenceRequest) -> GeneratedSequence:
        return scheduler.submit([request])[0].result(TIMEOUT_S).sequence

    scheduler.start()
    try:
        with ThreadPoolExecutor(num_clients) as clients:
            return list(clients.map(answer, requests))
    finally:
        scheduler.stop()


@pytest.mark.parametrize("num_clients", [1, BESIDE])
def test_drafts_change_no_token_and_no_probability(model: Model, num_clients: int) -> None:
    decoder, requests = model
    drafted = generate(decoder, requests, num_clients)
    plain = generate(decoder, requests, num_clients, WithoutDrafts)
    for one, other in zip(drafted, plain, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
