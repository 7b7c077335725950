"""Both families' decoders against transformers' `generate`, from the same image features, alone and
in batches.
"""

from dataclasses import replace

import pytest
import torch

from runners.decoder.batch import LiveBatch, generate_all, start_sequence
from runners.decoder.sequences import GeneratedSequence
from tests.support.decoder_cases import CASE_NAMES, MAX_NEW_TOKENS, Case, make_case
from tests.support.export_cli import ModelStore
from tests.support.reference_answers import reference_answer
from tests.support.token_choices import is_failure


@pytest.fixture(scope="module", params=CASE_NAMES)
def case(
    request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return make_case(request.param, exported, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def alone(case: Case) -> list[GeneratedSequence]:
    """Return the answer to each request in a separate batch."""
    return [generate_all(case.decoder, [request])[0] for request in case.requests()]


def test_a_batch_gives_the_tokens_of_each_sequence_alone(
    case: Case, alone: list[GeneratedSequence]
) -> None:
    together = generate_all(case.decoder, case.requests())
    assert [written.token_ids for written in together] == [written.token_ids for written in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


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


def test_seeded_sampling_is_the_same_alone_and_in_a_batch(case: Case) -> None:
    sampled = replace(case.request(0), temperature=1.0, seed=11)
    alone = generate_all(case.decoder, [sampled])[0]
    together = generate_all(case.decoder, [*case.requests()[:5], sampled])[-1]
    assert together.token_ids == alone.token_ids
    assert len(alone.token_ids) > 1


def test_a_sequence_that_ends_early_does_not_change_the_others(case: Case) -> None:
    short = replace(case.request(1), max_new_tokens=1)
    long = case.request(1)
    cut, whole = generate_all(case.decoder, [short, long])
    assert isinstance(whole, GeneratedSequence)
    assert whole.token_ids == generate_all(case.decoder, [long])[0].token_ids
    assert len(cut.token_ids) == 1


def test_nan_in_one_sequence_changes_neither_its_neighbours_nor_its_successor(case: Case) -> None:
    poisoned = replace(case.request(0), image_features=torch.full_like(case.features[0], torch.nan))
    batch = LiveBatch(case.decoder, 2)
    beside, after = (start_sequence(case.request(index), case.decoder.rules) for index in (1, 2))
    batch.admit([start_sequence(poisoned, case.decoder.rules), beside])
    while not (ended := batch.remove_ended()):  # a forced first token does not depend on the logits
        batch.step()
    assert is_failure("non_finite_logits")(ended[0].error)
    batch.admit([after])
    batch.remove_ended()
    while batch.live:
        batch.step()
        batch.remove_ended()
    alone = generate_all(case.decoder, [case.request(1)]) + generate_all(
        case.decoder, [case.request(2)]
    )
    assert [beside.result().token_ids, after.result().token_ids] == [
        each.token_ids for each in alone
    ]


def test_sequences_that_enter_and_leave_give_the_tokens_of_each_alone(
    case: Case, alone: list[GeneratedSequence]
) -> None:
    waiting = [start_sequence(request, case.decoder.rules) for request in case.requests()]
    sequences = list(waiting)
    batch = LiveBatch(case.decoder, 5)
    while waiting or batch.live:
        batch.remove_ended()
        if waiting and batch.num_free_slots:
            batch.admit([waiting.pop(0) for _ in range(min(len(waiting), batch.num_free_slots, 2))])
            batch.remove_ended()
        if batch.live:
            batch.step()
    assert [sequence.result().token_ids for sequence in sequences] == [
        each.token_ids for each in alone
    ]
