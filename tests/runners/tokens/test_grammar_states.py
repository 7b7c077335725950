"""Allowed tokens in 500 recorded grammar states, for the vocabularies of the embedded and released
checkpoints.
"""

import pytest

from runners.tokens.constraints import Constraints
from tests.support.grammar_states import (
    EOS_ID,
    FAMILY_OF,
    NUM_STATES,
    TokenizerName,
    measured,
    recorded_states,
    tokenizer_definition,
)
from tests.support.real_tokenizers import MISSING_NPM


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
