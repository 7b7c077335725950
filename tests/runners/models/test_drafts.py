"""Answers of real models with drafts against those without: all tasks with a grammar or a forced
token, with labels, phrases and regions. Those without are transformers' (test_decoders.py).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from export.scenes import render_scene
from laboratory.questions import question_prompts, questions
from laboratory.scenes import evaluation_scene
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.encoder.session import load_encoder
from runners.kv_cache import SlotCache, TokenPlaces
from runners.model_worker import to_request
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from tasks.families import FAMILIES
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG
from tests.support.export_cli import EMBEDDED, ModelStore
from wire.artifacts.manifest import read_manifest
from wire.runner_messages import SequenceSpec

NUM_ANSWERS = 20
BESIDE = 3  # requests in flight, so that drafts of different lengths share a pass
TIMEOUT_S = 3600.0


class Model(NamedTuple):
    """A decoder, and requests to it."""

    decoder: Decoder
    requests: list[SequenceRequest]


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
        for question in questions(scene):
            scaled = question.scaled(size_wh)
            parameters = parse_parameters(TASKS[scaled.task], scaled.parameters)
            grammar = FAMILIES[entry.family].answer_grammar(entry, scaled.task, parameters)
            for prompt in question_prompts(entry, scaled, size_wh):
                segments = [(segment.text, segment.is_control) for segment in prompt.segments]
                spec = SequenceSpec(
                    segments=segments, num_beams=1, grammar=grammar, timeout_s=TIMEOUT_S
                )
                requests.append(to_request(decoder, features, spec))
    return Model(decoder, requests[:NUM_ANSWERS])


def generate(
    decoder: Decoder, requests: Sequence[SequenceRequest], num_clients: int, can_draft: bool = True
) -> list[GeneratedSequence]:
    """Generate the answers to `requests`, `num_clients` at a time."""
    scheduler = Scheduler(decoder, "drafts", SchedulerLimits(num_clients, num_clients, 4096))

    def answer(request: SequenceRequest) -> GeneratedSequence:
        return scheduler.submit([request])[0].result(TIMEOUT_S).sequence

    decoder.can_draft = can_draft
    scheduler.start()
    try:
        with ThreadPoolExecutor(num_clients) as clients:
            return list(clients.map(answer, requests))
    finally:
        scheduler.stop()
        decoder.can_draft = True


@pytest.mark.parametrize("num_clients", [1, BESIDE])
def test_drafts_change_no_token_and_no_probability(model: Model, num_clients: int) -> None:
    requests = model.requests
    drafted = generate(model.decoder, requests, num_clients)
    plain = generate(model.decoder, requests, num_clients, can_draft=False)
    for one, other in zip(drafted, plain, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


class CountedDecoder:
    """A decoder that counts its passes."""

    can_draft = True

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.num_passes = 0
        self.num_drafted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> torch.Tensor:
        self.num_passes += 1
        self.num_drafted += places.token_ids.shape[1] > 1
        return self._decoder.decode_step(cache, places)


def test_drafts_save_passes(model: Model) -> None:
    requests = [one for one in model.requests if one.constraint is not None]
    drafted: Any = CountedDecoder(model.decoder)
    plain: Any = CountedDecoder(model.decoder)
    generate(drafted, requests, 1)
    generate(plain, requests, 1, can_draft=False)
    assert plain.num_drafted == 0 < drafted.num_drafted
    assert drafted.num_passes < 0.9 * plain.num_passes
