"""Allowed tokens in 500 recorded grammar states, for the vocabularies of the embedded and released
checkpoints.
"""

import statistics
import time
from collections.abc import Iterator

import pytest
import torch

from runners.tokens.constraints import Constraints
from tests.support.grammar_states import (
    EOS_ID,
    FAMILY_OF,
    NUM_STATES,
    TokenizerName,
    grammar_of,
    measured,
    recorded_states,
    state_after,
    tokenizer_definition,
)
from tests.support.real_tokenizers import MISSING_NPM
from tests.support.token_choices import masked

GEMMA_LOGITS = 257_216
# time of a mask; 0.3 and 0.15 on a quiet core
MAX_FIRST_MS = 2.0
MAX_LATER_MS = 0.4


@pytest.mark.parametrize("name", FAMILY_OF)
def test_allowed_tokens_are_as_recorded(name: TokenizerName) -> None:
    definition = tokenizer_definition(name)
    if definition is None:
        pytest.skip(MISSING_NPM)
    constraints = Constraints(definition, {EOS_ID[FAMILY_OF[name]]})
    states = recorded_states(name)
    assert len(states) == NUM_STATES
    for state in states:
        assert measured(state, constraints) == state


@pytest.fixture
def single_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("single_thread")
def test_a_mask_over_gemmas_vocabulary_takes_a_fraction_of_a_decode_step() -> None:
    definition = tokenizer_definition("gemma")
    if definition is None:
        pytest.skip(MISSING_NPM)
    constraints = Constraints(definition, {EOS_ID["paligemma"]})
    logprobs = torch.zeros(GEMMA_LOGITS)
    first_ms = []
    later_ms = []
    for recorded in recorded_states("gemma"):
        constraints.get.cache_clear()
        constraint = constraints.get(grammar_of(recorded))
        state = state_after(constraint, recorded.token_ids)
        times_ms = []
        for _ in range(5):
            start_s = time.thread_time()
            masked(constraint, state, logprobs)
            times_ms.append((time.thread_time() - start_s) * 1000)
        first_ms.append(times_ms[0])
        later_ms.append(min(times_ms[1:]))
    assert statistics.median(first_ms) <= MAX_FIRST_MS
    assert statistics.median(later_ms) <= MAX_LATER_MS
