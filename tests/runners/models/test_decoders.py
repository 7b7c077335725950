"""Both families' decoders against transformers' `generate`, from the same image features: alone, in
batches, and in flight at random times, some cancelled.

An answer may differ only at a near tie: the reference's two best logits (with beams: the answers'
scores) lie within 1e-3. Near ties are counted and printed, and are at most 2 % of a case's answers.
"""

import random
import time
from concurrent.futures import Future, wait
from dataclasses import replace

import pytest
import torch

from runners.decoder.batch import LiveBatch, generate_all, start_sequence
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest, WrittenSequence
from runners.models.load import check_cuda_torch
from runners.options import SchedulerLimits
from tests.support.decoder_cases import (
    MAX_NEAR_TIES,
    MAX_NEW_TOKENS,
    Case,
    make_case,
    reference_answer,
)
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.token_choices import is_failure

CASE_NAMES = (
    *EMBEDDED,
    "florence-2-mini released rules",
    "random florence2",
    "random paligemma",
    "random paligemma2",
)
NUM_BEAMS = 3
TIMEOUT_S = 300
LIMITS = SchedulerLimits(num_slots=12, max_waiting=200, max_prefill_tokens=1200)
EVERY_CANCELLED = 9
EVERY_WITH_BEAMS = 4


@pytest.fixture(scope="module", params=CASE_NAMES)
def case(
    request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return make_case(request.param, exported, tmp_path_factory.mktemp("case"))


def submitted(case: Case, requests: list[SequenceRequest]) -> "list[Future[WrittenSequence]]":
    """Submit at random times, cancel some that are queued or live, and wait for all others."""
    rng = random.Random(0)
    scheduler = Scheduler(case.decoder, "exactness", LIMITS)
    scheduler.start()
    futures = []
    for index, request in enumerate(requests):
        futures.extend(scheduler.submit([request]))
        time.sleep(rng.random() * 0.01)
        if index % EVERY_CANCELLED == EVERY_CANCELLED - 1:
            futures[index - rng.randrange(3)].cancel()
    wait(futures, TIMEOUT_S)
    scheduler.stop()
    return futures


@pytest.mark.parametrize("num_requests", [24, pytest.param(200, marks=pytest.mark.long)])
def test_requests_in_flight_get_their_tokens(case: Case, num_requests: int) -> None:
    rng = random.Random(1)
    requests = [
        case.request(index, rng.randrange(2, 32), NUM_BEAMS if index % EVERY_WITH_BEAMS == 0 else 1)
        for index in range(num_requests)
    ]
    written: list[tuple[int, ...]] = []
    num_near_ties = 0
    futures = submitted(case, requests)
    for index, (request, future) in enumerate(zip(requests, futures, strict=True)):
        if not future.cancelled():
            sequence = future.result().sequence
            score = sum(sequence.logprobs) / len(sequence.logprobs)
            written.append(sequence.token_ids)
            num_near_ties += not case.equals_reference(index, request, sequence.token_ids, score)
    assert len(written) >= num_requests * 0.8
    assert sum(map(len, written)) > 4 * len(written)  # answers are not empty
    assert num_near_ties <= MAX_NEAR_TIES * len(written)


def test_log_probabilities_equal_the_reference(case: Case) -> None:
    written = generate_all(case.decoder, [case.request(1)])[0]
    expected = reference_answer(
        case.reference, case.prompts[1], case.images[1], case.features[1], MAX_NEW_TOKENS
    )
    scores = case.reference.model.compute_transition_scores(
        torch.tensor([expected.token_ids]), tuple(expected.logits[:, None]), normalize_logits=True
    )
    assert written.token_ids == expected.token_ids
    assert written.logprobs == pytest.approx(scores[0].tolist(), abs=1e-4)


def test_nan_stays_in_its_sequence(case: Case) -> None:
    poisoned = replace(case.request(0), image_features=torch.full_like(case.features[0], torch.nan))
    batch = LiveBatch(case.decoder, 2)
    beside, after = (start_sequence(case.request(index), case.decoder.rules) for index in (1, 2))
    batch.admit([start_sequence(poisoned, case.decoder.rules), beside])
    while not (ended := batch.remove_ended()):  # a forced first token does not depend on the logits
        batch.step()
    assert is_failure("non_finite_logits")(ended[0].error)
    batch.admit([after])
    batch.remove_ended()
    while batch.slots.of:
        batch.step()
        batch.remove_ended()
    for index, sequence in ((1, beside), (2, after)):
        (alone,) = generate_all(case.decoder, [case.request(index)])
        assert sequence.result().token_ids == alone.token_ids


@pytest.mark.parametrize("version", ["2.12.0", "2.14.1+cu130"])
def test_torch_with_freed_workspaces_is_refused(version: str) -> None:
    with pytest.raises(RuntimeError, match=f"torch {version[:6]}.*install requirements-gpu.txt"):
        check_cuda_torch(version)


def test_old_torch_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for version in ("2.11.0+cu130", "2.15.0", "2.16.0a0+nv26.11", "3.0.0"):
        check_cuda_torch(version)
    (message,) = caplog.messages
    assert message.startswith("torch 2.11.0+cu130 is not supported on a GPU")
