"""One sequence: its request, the conditions on its next token, and its end.

A sequence has one row in each decode step, or one per beam (runners/decoder/beams.py). Plain values and rules: logits,
slots, caches and families are unknown here.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from torch import Tensor

from runners.decoder.constraints import Constraint, ConstraintState
from runners.decoder.errors import DeadlineExceeded, NonFiniteLogits, SequenceError
from runners.decoder.rules import GenerationRules
from runners.decoder.token_choice import Choice, RowConditions
from runners.transport.messages import FinishReason

TokenListener = Callable[[Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """A sequence to generate."""

    image_features: Tensor  # (N, C)
    prompt_ids: tuple[int, ...]  # with the tokens that the family adds around a prompt, without image tokens
    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # sample from the most probable tokens whose probabilities sum to this; ignored if greedy
    seed: int | None = None
    num_beams: int = 1  # more than 1 only if greedy
    constraint: Constraint | None = None  # None: unconstrained
    deadline_s: float = math.inf  # on the clock of time.monotonic()
    on_tokens: TokenListener | None = None  # called with newly settled tokens, in the decoder's thread


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """All generated tokens, the end token included, with their log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class LiveSequence(Protocol):
    """A sequence during generation, as the batch uses it."""

    request: SequenceRequest
    finish_reason: FinishReason | None
    error: SequenceError | None

    @property
    def num_rows(self) -> int:
        """The number of slots that the sequence takes."""
        ...

    @property
    def has_ended(self) -> bool:
        """True once the sequence is complete or has failed."""
        ...

    @property
    def last_token_ids(self) -> Sequence[int]:
        """The last token of each row, the input of the next decode step."""
        ...

    @property
    def settled_token_ids(self) -> Sequence[int]:
        """The leading tokens of the answer that can no longer change."""
        ...

    def conditions(self) -> Sequence[RowConditions]:
        """Return the conditions on the next token of each row; to be called once for each token."""
        ...

    def advance(self, choices: Sequence[Choice]) -> Sequence[int]:
        """Append the chosen tokens, and return each row's parent row, whose cache it continues.

        A sequence that fails gets its `error`; of one that has ended the rows are meaningless.
        """
        ...

    def result(self) -> GeneratedSequence:
        """Return the generated sequence, or raise its error; `ValueError` before it has ended."""
        ...


@dataclass(slots=True, eq=False)
class SingleSequence:
    """A greedy or sampled sequence, with one row."""

    request: SequenceRequest
    rules: GenerationRules
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: SequenceError | None = None
    _state: ConstraintState | None = None
    _is_constrained: bool = False  # at the next position
    _random: Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = Random(self.request.seed)

    @property
    def num_rows(self) -> int:
        return 1

    @property
    def has_ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def last_token_ids(self) -> Sequence[int]:
        return self.token_ids[-1:]

    @property
    def settled_token_ids(self) -> Sequence[int]:
        return self.token_ids

    def conditions(self) -> Sequence[RowConditions]:
        allowed = None
        forced = self.rules.forced_token(len(self.token_ids), self.request.max_new_tokens)
        if forced is None and self.request.constraint is not None:
            self._state = self._state or self.request.constraint.start()
            allowed = self.request.constraint.allowed(self._state)
        self._is_constrained = allowed is not None
        temperature = self.request.temperature
        return [
            RowConditions(
                forced=forced,
                banned=self.rules.banned_tokens(self.token_ids),
                allowed=allowed,
                temperature=temperature,
                top_p=self.request.top_p,
                uniform=self._random.random() if temperature else 0.0,
            )
        ]

    def advance(self, choices: Sequence[Choice]) -> Sequence[int]:
        try:
            self._append(choices[0].token_id, choices[0].logprob)
        except SequenceError as error:
            self.error = error
        return (0,)

    def _append(self, token_id: int, logprob: float) -> None:
        """Append the next token, and set `finish_reason` if it is the last.

        If rules and constraint together allow no token (-inf), the answer ends without it.
        """
        check_deadline(self.request, len(self.token_ids))
        if logprob == -math.inf and self._is_constrained:
            self.finish_reason = "stop"
            return
        if not math.isfinite(logprob):
            raise NonFiniteLogits(f"the logits of token {len(self.token_ids)} are not finite")
        if self.request.constraint is not None and self._state is not None:
            self._state = self.request.constraint.after(self._state, token_id)
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.finish_reason = finish_reason_of(self.token_ids, self.request.max_new_tokens, self.rules)

    def result(self) -> GeneratedSequence:
        if self.error is not None:
            raise self.error
        if self.finish_reason is None:
            raise ValueError("the sequence has not ended")
        return GeneratedSequence(tuple(self.token_ids), tuple(self.logprobs), self.finish_reason)


def check_deadline(request: SequenceRequest, num_tokens: int) -> None:
    """Raise `DeadlineExceeded` if the deadline has passed; `num_tokens` are generated so far."""
    if time.monotonic() > request.deadline_s:
        raise DeadlineExceeded(f"the deadline passed after {num_tokens} tokens")


def finish_reason_of(token_ids: Sequence[int], max_new_tokens: int, rules: GenerationRules) -> FinishReason | None:
    """Return why an answer ends with the last of `token_ids`, None if it continues; a forced end token is "length"."""
    is_full, is_end = len(token_ids) >= max_new_tokens, token_ids[-1] in rules.eos_token_ids
    if is_full and (not is_end or rules.forced_eos_token_id == token_ids[-1]):
        return "length"
    return "stop" if is_end else None
