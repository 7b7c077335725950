"""One sequence: its request, the choice of its next token, and its end.

A sequence has one row of logits in each decode step, or one per beam (runners/decoder/beams.py). Plain values and
rules: slots, caches and families are unknown here. Shapes: R rows, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from runners.decoder.constraints import Constraint, ConstraintState
from runners.decoder.errors import DeadlineExceeded, NonFiniteLogits, SequenceError
from runners.decoder.rules import GenerationRules
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
    _generator: torch.Generator | None = None

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

    @property
    def has_rule_now(self) -> bool:
        """True if the checkpoint's rules may forbid tokens at the next position."""
        return self.rules.has_rule(len(self.token_ids), self.request.max_new_tokens)

    @property
    def is_constrained_now(self) -> bool:
        """True if the constraint applies at the next position; a token forced by the rules takes precedence."""
        position, limit = len(self.token_ids), self.request.max_new_tokens
        return self.request.constraint is not None and self.rules.forced_token(position, limit) is None

    def apply_rules(self, scores: Tensor) -> Tensor:
        """Return `scores` (V,) with the tokens that the rules forbid at -inf."""
        return self.rules.allowed(scores, self.token_ids, self.request.max_new_tokens)

    def apply_constraint(self, logprobs: Tensor) -> Tensor:
        """Return `logprobs` (V,) with the tokens that the constraint forbids at -inf.

        The others are not renormalised: scores express the model's confidence, not the narrowness of the grammar.
        """
        constraint = self.request.constraint
        assert constraint is not None
        self._state = constraint.start() if self._state is None else self._state
        return constraint.masked(self._state, logprobs)

    def append(self, token_id: int, logprob: float) -> None:
        """Append the next token, and set `finish_reason` if it is the last.

        If rules and constraint together allow no token (-inf), the answer ends without it. Raise `NonFiniteLogits`,
        `DeadlineExceeded` or `GrammarError`.
        """
        check_deadline(self.request, len(self.token_ids))
        if logprob == -math.inf and self.is_constrained_now:
            self.finish_reason = "stop"
            return
        if not math.isfinite(logprob):
            raise NonFiniteLogits(f"the logits of token {len(self.token_ids)} are not finite")
        if self.request.constraint is not None and self._state is not None:
            self._state = self.request.constraint.after(self._state, token_id)
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.finish_reason = finish_reason_of(self.token_ids, self.request.max_new_tokens, self.rules)

    def sample(self, scores: Tensor) -> int:
        """Draw a token from `scores` (V,) by the request's temperature and top-p; raise `NonFiniteLogits`."""
        if self._generator is None:
            seed = torch.seed() if self.request.seed is None else self.request.seed
            self._generator = torch.Generator().manual_seed(seed)
        probabilities = torch.softmax(scores.cpu() / self.request.temperature, dim=-1)
        if not bool(torch.isfinite(probabilities).all()):
            raise NonFiniteLogits(f"the logits of token {len(self.token_ids)} are not finite")
        kept = _nucleus(probabilities, self.request.top_p)
        return int(torch.multinomial(kept, 1, generator=self._generator))

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


def choose_next_tokens(sequences: Sequence[SingleSequence], logits: Tensor) -> None:
    """Append the next token to each sequence by its row of `logits` (R, V); a failed sequence gets its `error`."""
    logprobs = _allowed_logprobs(sequences, logits)
    greedy_logprobs, greedy_ids = (column.tolist() for column in logprobs.max(dim=-1))
    for row, sequence in enumerate(sequences):
        try:
            if sequence.request.temperature == 0 or greedy_logprobs[row] == -math.inf:
                sequence.append(greedy_ids[row], greedy_logprobs[row])
            else:
                token_id = sequence.sample(logprobs[row])
                sequence.append(token_id, float(logprobs[row, token_id]))
        except SequenceError as error:
            sequence.error = error


def _allowed_logprobs(sequences: Sequence[SingleSequence], logits: Tensor) -> Tensor:
    """Return the log-probabilities (R, V), float32, with forbidden tokens at -inf."""
    ruled = [(row, sequence) for row, sequence in enumerate(sequences) if sequence.has_rule_now]
    scores = logits.to(torch.float32, copy=bool(ruled))
    for row, sequence in ruled:
        scores[row] = sequence.apply_rules(scores[row])
    logprobs = torch.log_softmax(scores, dim=-1)
    for row, sequence in enumerate(sequences):
        if sequence.is_constrained_now:
            logprobs[row] = sequence.apply_constraint(logprobs[row])
    return logprobs


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return `probabilities` (V,) with all but the smallest set of tokens that sums to at least `top_p` set to 0.

    Source: Holtzman et al., arXiv 1904.09751, section 3.1; the same choice as transformers' TopPLogitsWarper.
    """
    if top_p >= 1:
        return probabilities
    ascending, order = probabilities.sort()
    is_dropped = ascending.cumsum(dim=-1) <= 1 - top_p
    is_dropped[-1] = False
    return probabilities.index_fill(0, order[is_dropped], 0.0)
