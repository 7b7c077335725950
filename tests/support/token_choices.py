"""One step of a sequence alone, and one constraint over one row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from runners.decoder.sequences import LiveSequence
from runners.tokens.constraints import Constraint, ConstraintState, token_bounds
from runners.tokens.token_choice import choose_tokens


def advance(sequence: LiveSequence, logits: Tensor) -> Sequence[int]:
    """Append the next tokens by the logits (R, V) of the sequence's rows.

    Return the parent rows.
    """
    (choices,) = choose_tokens(logits, sequence.conditions(), [range(len(logits))])
    return sequence.advance(choices)


def masked(constraint: Constraint, state: ConstraintState, logprobs: Tensor) -> Tensor:
    """Return `logprobs` (V,) with all tokens that `state` does not allow at -inf."""
    (bounds,) = token_bounds(constraint.allowed(state)[None], len(logprobs), logprobs.device)
    return torch.minimum(logprobs, bounds)


def allowed_ids(constraint: Constraint, state: ConstraintState, size: int = 2**18) -> list[int]:
    """Return the ids of the tokens allowed next, ascending."""
    return masked(constraint, state, torch.zeros(size)).isfinite().nonzero().flatten().tolist()
