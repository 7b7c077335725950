"""Answers with drafts against those without, and against transformers' `generate`, without drafts
or a grammar.

The questions are those of the evaluation: all tasks with a grammar or a forced token, with labels,
phrases and regions.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export.checks.reference import Reference
from export.scenes import render_scene
from laboratory.questions import question_prompts, questions
from laboratory.scenes import evaluation_scene
from runners.decoder.answers import to_request
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import GeneratedSequence, SequenceRequest
from runners.encoder.session import load_encoder
from runners.kv_cache import SlotCache, TokenPlaces
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from tasks.families import FAMILIES
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG
from tests.support.decoder_cases import MAX_NEAR_TIES, NEAR_TIE_LOGITS
from tests.support.export_cli import EMBEDDED, MODELS, ModelStore
from tests.support.reference_answers import reference_answer
from wire.artifacts.manifest import read_manifest
from wire.runner_messages import SequenceSpec

NUM_SCENES = 14
NUM_ANSWERS = 20  # fewer than in the long tests
BESIDE = 3  # requests in flight, so that drafts of different lengths share a pass
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt about an image, and its request."""

    text: str
    image: Image.Image
    request: SequenceRequest


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder, the same checkpoint in transformers, and prompts."""

    decoder: Decoder
    reference: Reference
    prompts: list[Prompt]

    def requests(self, num: int) -> list[SequenceRequest]:
        return [prompt.request for prompt in self.prompts[:num]]


@pytest.fixture(scope="module", params=EMBEDDED)
def model(request: pytest.FixtureRequest, exported: ModelStore) -> Model:
    folder = exported.newest(request.param)
    entry = CATALOG[request.param]
    decoder = load_decoder(folder, read_manifest(folder).family, "float32", "cpu")
    encoder = load_encoder(folder, precision="float32")
    size_wh = (entry.resolution, entry.resolution)
    prompts: list[Prompt] = []
    for scene in map(evaluation_scene, range(NUM_SCENES)):
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
                text = "".join(text for text, _ in segments)
                prompts.append(Prompt(text, image, to_request(decoder, features, spec)))
    return Model(decoder, Reference.load(MODELS / request.param), prompts)


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


def differs_at_near_tie(model: Model, prompt: Prompt, answer: GeneratedSequence) -> bool:
    """Return False for the tokens of `generate`, True at a near tie; fail for any others."""
    request = prompt.request
    expected = reference_answer(
        model.reference, prompt.text, prompt.image, request.image_features, request.max_new_tokens
    )
    if answer.token_ids == expected.token_ids:
        return False
    pairs = enumerate(zip(answer.token_ids, expected.token_ids, strict=False))
    step = next(index for index, (one, other) in pairs if one != other)
    best, second = expected.logits[step].topk(2).values.tolist()
    assert best - second <= NEAR_TIE_LOGITS, (prompt.text, answer.token_ids, expected.token_ids)
    return True


@pytest.mark.parametrize("num_answers", [NUM_ANSWERS, pytest.param(200, marks=pytest.mark.long)])
def test_drafts_give_the_tokens_of_generate(
    model: Model, num_answers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = generate(model.decoder, model.requests(num_answers), BESIDE)
    num_near_ties = 0
    for prompt, answer in zip(model.prompts[:num_answers], answers, strict=True):
        num_near_ties += differs_at_near_tie(model, prompt, answer)
    with capsys.disabled():
        print(f"\n{num_near_ties} near ties in {num_answers} answers", end=" ")
    assert num_near_ties <= MAX_NEAR_TIES * num_answers


@pytest.mark.parametrize("num_clients", [1, BESIDE])
def test_drafts_change_no_token_and_no_probability(model: Model, num_clients: int) -> None:
    requests = model.requests(NUM_ANSWERS)
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
    requests = [one for one in model.requests(NUM_ANSWERS) if one.constraint is not None]
    drafted: Any = CountedDecoder(model.decoder)
    plain: Any = CountedDecoder(model.decoder)
    generate(drafted, requests, 1)
    generate(plain, requests, 1, can_draft=False)
    assert plain.num_drafted == 0 < drafted.num_drafted
    assert drafted.num_passes < 0.9 * plain.num_passes
