"""Values of a choice of tokens: conditions on a row, choices, and inputs of the next pass.

Knows no torch: sequences, slots and the pipeline use these. Shapes: B slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

PassT = TypeVar("PassT")


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no equality
class RowConditions:
    """The conditions on the next token of a row, and how it is chosen."""

    forced: int | None = None  # the only allowed token, whose log-probability is 0
    banned: Sequence[int] = ()
    # bit mask of the tokens that a constraint allows; None allows all
    allowed: NDArray[np.uint8] | None = None
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    uniform: float = 0.0  # random number of a sampled token, in [0, 1)
    # sum of the beam's log-probabilities, or None for a non-beam row
    beam_score: float | None = None
    num_candidates: int = 1  # total over all beams of a sequence


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a row; `score` is the sum of the beam's log-probabilities with it."""

    row: int  # index among the sequence's rows
    token_id: int
    logprob: float
    score: float
    # the constraint forbids the token that the row's logits prefer
    is_constrained: bool = False


@dataclass(frozen=True, slots=True)
class Chosen(Generic[PassT]):
    """The choices of each sequence of a pass, in the order of its sequences."""

    choices: list[list[Choice]]
    ahead: PassT | None = None  # the next pass, if it has been launched
    redrawn: Sequence[int] = ()  # places of sequences for which `ahead` reads another token


@dataclass(frozen=True, slots=True)
class NextInputs:
    """The inputs of the next pass over slots 0 to B - 1, as far as the host knows them."""

    # row of the running pass that chooses each slot's token, or None
    rows: Sequence[int | None]
    tokens: Sequence[int]  # token of each slot without such a row; ignored for others
    # keys are slots of beams, values the slots of the sequence by row, or only that slot if no row
    # chooses its token
    parents: Mapping[int, Sequence[int]] = field(default_factory=dict)
