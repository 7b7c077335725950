"""Answers with drafts against those without, and against transformers' `generate`, without drafts
or a grammar.

The questions are those of the evaluation: all tasks with a grammar or a forced token, with labels,
phrases and regions.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from export.checkpoints.bases import CATALOG_FILE
from export.checks.reference import Reference
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import GeneratedSequence
from runners.encoder.session import VisionEncoder
from runners.kv_cache import SlotCache, TokenPlaces
from runners.models.load import load_decoder
from tasks.catalog import load_catalog
from tasks.table import TASKS
from tests.support.decoder_cases import MAX_NEAR_TIES, NEAR_TIE_LOGITS
from tests.support.drafted_answers import Asked, asked, generate, generate_without_drafts
from tests.support.export_cli import EMBEDDED, MODELS, ModelStore
from tests.support.reference_answers import reference_answer
from wire.artifacts.manifest import read_manifest

NUM_SCENES = 14
NUM_ANSWERS = 20  # fewer than in the long tests
BESIDE = 3  # requests in flight, so that drafts of different lengths share a pass


@pytest.fixture(scope="module", params=EMBEDDED)
def model(
    request: pytest.FixtureRequest, exported: ModelStore
) -> tuple[Decoder, list[Asked], Reference]:
    folder = exported.newest(request.param)
    entry = load_catalog(CATALOG_FILE)[request.param]
    decoder = load_decoder(folder, read_manifest(folder).family, "float32", "cpu")
    encoder = VisionEncoder(folder, precision="float32")
    encoder.load()
    questions = list(asked(decoder, encoder, entry, list(TASKS), range(NUM_SCENES)))
    return decoder, questions, Reference.load(MODELS / request.param)


class CountedDecoder:
    """A decoder that counts its passes."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.num_passes = 0
        self.num_drafted = 0
        self.can_draft = decoder.can_draft

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> torch.Tensor:
        self.num_passes += 1
        self.num_drafted += places.token_ids.shape[1] > 1
        return self._decoder.decode_step(cache, places)


def differs_at_near_tie(asked_one: Asked, answer: GeneratedSequence, reference: Reference) -> bool:
    """Return False for the tokens of `generate`, True at a near tie; fail for any others."""
    limit = asked_one.request.max_new_tokens
    features = asked_one.request.image_features
    expected = reference_answer(reference, asked_one.prompt, asked_one.image, features, limit)
    if answer.token_ids == expected.token_ids:
        return False
    step = next(i for i, (a, b) in enumerate(zip(answer.token_ids, expected.token_ids)) if a != b)  # noqa: B905
    best, second = expected.logits[step].topk(2).values.tolist()
    assert best - second <= NEAR_TIE_LOGITS, (
        asked_one.prompt,
        answer.token_ids,
        expected.token_ids,
    )
    return True


@pytest.mark.parametrize("num_answers", [NUM_ANSWERS, pytest.param(200, marks=pytest.mark.long)])
def test_drafts_give_the_tokens_of_generate(
    model: tuple[Decoder, list[Asked], Reference],
    num_answers: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoder, questions, reference = model
    requests = [question.request for question in questions[:num_answers]]
    answers = generate(decoder, requests, BESIDE)
    assert len(answers) == num_answers
    num_near_ties = sum(map(differs_at_near_tie, questions, answers, [reference] * num_answers))
    with capsys.disabled():
        print(f"\n{num_near_ties} near ties in {num_answers} answers", end=" ")
    assert num_near_ties <= MAX_NEAR_TIES * num_answers


def test_drafts_change_neither_tokens_nor_probabilities(
    model: tuple[Decoder, list[Asked], Reference],
) -> None:
    decoder = model[0]
    requests = [question.request for question in model[1][:NUM_ANSWERS]]
    for num_clients in (1, BESIDE):
        drafted = generate(decoder, requests, num_clients)
        plain = generate_without_drafts(decoder, requests, num_clients)
        for one, other in zip(drafted, plain, strict=True):
            assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_an_answer_cut_anywhere_is_the_beginning_of_the_whole(
    model: tuple[Decoder, list[Asked], Reference],
) -> None:
    decoder, questions, _ = model
    for question in questions[:5]:
        (whole,) = generate_without_drafts(decoder, [question.request], 1)
        limits = range(1, len(whole.token_ids) + 1)
        cut = [replace(question.request, max_new_tokens=limit) for limit in limits]
        drafted = generate(decoder, cut, BESIDE)
        plain = generate_without_drafts(decoder, cut, BESIDE)
        assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]


def test_drafts_save_passes(model: tuple[Decoder, list[Asked], Reference]) -> None:
    requests = [
        each.request for each in model[1][:NUM_ANSWERS] if each.request.constraint is not None
    ]
    drafted: Any = CountedDecoder(model[0])
    plain: Any = CountedDecoder(model[0])
    generate(drafted, requests, 1)
    generate_without_drafts(plain, requests, 1)
    assert plain.num_drafted == 0 < drafted.num_drafted
    assert drafted.num_passes < 0.9 * plain.num_passes
