"""Allowed tokens in 500 recorded grammar states, for the vocabularies of the embedded and released
checkpoints.
"""

import statistics
import time
from collections.abc import Callable, Iterator

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
# time of a mask over that of a softmax; 4 and 1 on a busy core
MAX_FIRST = 16.0
MAX_LATER = 4.0


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


def seconds(function: Callable[..., object], *arguments: object) -> float:
    start_s = time.thread_time()
    function(*arguments)
    return time.thread_time() - start_s


@pytest.mark.usefixtures("single_thread")
def test_a_mask_over_gemmas_vocabulary_takes_a_fraction_of_a_decode_step() -> None:
    definition = tokenizer_definition("gemma")
    if definition is None:
        pytest.skip(MISSING_NPM)
    constraints = Constraints(definition, {EOS_ID["paligemma"]})
    logprobs = torch.zeros(GEMMA_LOGITS)
    first_s = []
    later_s = []
    softmax_s = []
    for recorded in recorded_states("gemma"):
        constraints.get.cache_clear()
        constraint = constraints.get(grammar_of(recorded))
        state = state_after(constraint, recorded.token_ids)
        times_s = [seconds(masked, constraint, state, logprobs) for _ in range(5)]
        first_s.append(times_s[0])
        later_s.append(min(times_s[1:]))
        softmax_s.append(seconds(torch.log_softmax, logprobs, 0))
    assert statistics.median(first_s) <= MAX_FIRST * statistics.median(softmax_s)
    assert statistics.median(later_s) <= MAX_LATER * statistics.median(softmax_s)
