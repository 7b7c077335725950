"""One step of a sequence alone, and one constraint over one row."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from runners.decoder.sequences import LiveSequence
from runners.errors import SequenceError
from runners.tokens.choice import RowConditions, choose_tokens
from runners.tokens.text import Constraint, TokenMasks


def conditions_of(sequence: LiveSequence, num_tokens: int) -> Sequence[RowConditions]:
    masks = TokenMasks(num_tokens)
    masks.clear(sequence.request.num_beams)
    conditions = sequence.conditions(masks)
    masks.compute()
    return conditions


def advance(sequence: LiveSequence, logits: Tensor) -> Sequence[int]:
    """Append the next tokens by the logits (R, V) of its rows; return the parent rows."""
    conditions = conditions_of(sequence, logits.shape[1])
    (choices,) = choose_tokens(logits, conditions, [range(len(logits))])
    return sequence.advance(choices)


def masked(constraint: Constraint, logprobs: Tensor) -> Tensor:
    """Return `logprobs` (V,) with all tokens that `constraint` does not allow at -inf."""
    bits = np.unpackbits(constraint.allowed(), count=len(logprobs), bitorder="little")
    return logprobs.masked_fill(torch.from_numpy(bits == 0), -torch.inf)


def allowed_ids(constraint: Constraint, size: int = 2**18) -> list[int]:
    return masked(constraint, torch.zeros(size)).isfinite().nonzero().flatten().tolist()


def is_failure(code: str) -> Callable[[BaseException | None], bool]:
    return lambda error: isinstance(error, SequenceError) and error.code == code
