"""Both families' decoders against transformers' `generate`, from the same image features, alone and
in batches.
"""

from dataclasses import replace

import pytest
import torch

from runners.decoder.batch import LiveBatch, generate_all, start_sequence
from tests.support.decoder_cases import CASE_NAMES, MAX_NEW_TOKENS, Case, make_case
from tests.support.export_cli import ModelStore
from tests.support.reference_answers import reference_answer
from tests.support.token_choices import is_failure


@pytest.fixture(scope="module", params=CASE_NAMES)
def case(
    request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return make_case(request.param, exported, tmp_path_factory.mktemp("case"))


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
