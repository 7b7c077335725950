"""One sequence: what a decoder is asked for, how its next token is chosen, and when it ends.

A sequence has one row of logits at each step, or as many as it has beams. Plain values and rules; it knows nothing of
slots, caches or families. Shapes: R rows, V vocabulary.
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
    """One sequence that a decoder shall write."""

    image_features: Tensor  # (N, C)
    prompt_ids: tuple[int, ...]  # with the tokens that the family puts around a prompt, without image tokens
    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # the most probable tokens that together have this probability; of no effect if greedy
    seed: int | None = None
    num_beams: int = 1  # more than 1 only if greedy
    constraint: Constraint | None = None  # the answers that may be written, any if None
    deadline_s: float = math.inf  # on the clock of time.monotonic()
    on_tokens: TokenListener | None = None  # hears new settled tokens, in the decoder's thread


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """What a decoder wrote: every new token, the end token included, with its log-probability."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


class LiveSequence(Protocol):
    """A sequence while it is being written, as the batch sees it."""

    request: SequenceRequest
    finish_reason: FinishReason | None
    error: SequenceError | None

    @property
    def num_rows(self) -> int:
        """Slots that it takes."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether it is written to its end or has failed."""
        ...

    @property
    def last_token_ids(self) -> Sequence[int]:
        """The token of each row that the decoder reads next."""
        ...

    @property
    def settled_token_ids(self) -> Sequence[int]:
        """The first tokens of the answer, those that nothing can change any more."""
        ...

    def result(self) -> GeneratedSequence:
        """Return what was written; raise the error of one that failed. Only for one that has ended."""
        ...


@dataclass(slots=True, eq=False)
class SingleSequence:
    """A sequence of one row, greedy or sampled."""

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
        """One."""
        return 1

    @property
    def has_ended(self) -> bool:
        """Whether it is written to its end or has failed."""
        return self.finish_reason is not None or self.error is not None

    @property
    def last_token_ids(self) -> Sequence[int]:
        """The last token."""
        return self.token_ids[-1:]

    @property
    def settled_token_ids(self) -> Sequence[int]:
        """All that are written."""
        return self.token_ids

    @property
    def has_rule_now(self) -> bool:
        """Whether the checkpoint's rules may forbid tokens at the next place."""
        return self.rules.has_rule(len(self.token_ids), self.request.max_new_tokens)

    @property
    def is_constrained_now(self) -> bool:
        """Whether the answer's pattern may forbid tokens at the next place; what the rules force comes before it."""
        position, limit = len(self.token_ids), self.request.max_new_tokens
        return self.request.constraint is not None and self.rules.forced_token(position, limit) is None

    def allowed(self, scores: Tensor) -> Tensor:
        """Return `scores` (V,) with every token that the rules forbid at -inf."""
        return self.rules.allowed(scores, self.token_ids, self.request.max_new_tokens)

    def constrained(self, logprobs: Tensor) -> Tensor:
        """Return `logprobs` (V,) with every token that cannot continue the answer's pattern at -inf.

        What is left keeps its log-probability, so that scores say how sure the model was, not how narrow the pattern.
        """
        constraint = self.request.constraint
        assert constraint is not None
        self._state = constraint.start() if self._state is None else self._state
        return constraint.masked(self._state, logprobs)

    def take(self, token_id: int, logprob: float) -> None:
        """Take the next token and note whether it is the last; raise `NonFiniteLogits` or `DeadlineExceeded`.

        Where rules and pattern together leave nothing, the answer ends as it is.
        """
        check_time(self.request, len(self.token_ids))
        if logprob == -math.inf and self.is_constrained_now:
            self.finish_reason = "stop"
            return
        if not math.isfinite(logprob):
            raise NonFiniteLogits(f"the logits of token {len(self.token_ids)} are not finite")
        if self.request.constraint is not None and self._state is not None:
            self._state = self.request.constraint.after(self._state, token_id)
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self.finish_reason = end_of(self.token_ids, self.request.max_new_tokens, self.rules)

    def sample(self, scores: Tensor) -> int:
        """Draw a token by the request's temperature and top-p from `scores` (V,); raise `NonFiniteLogits`."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(_seed(self.request))
        probabilities = torch.softmax(scores.cpu() / self.request.temperature, dim=-1)
        if not bool(torch.isfinite(probabilities).all()):
            raise NonFiniteLogits(f"the logits of token {len(self.token_ids)} are not finite")
        kept = _nucleus(probabilities, self.request.top_p)
        return int(torch.multinomial(kept, 1, generator=self._generator))

    def result(self) -> GeneratedSequence:
        """Return what was written; raise the error of one that failed. Only for one that has ended."""
        if self.error is not None:
            raise self.error
        if self.finish_reason is None:
            raise ValueError("the sequence is not finished")
        return GeneratedSequence(tuple(self.token_ids), tuple(self.logprobs), self.finish_reason)


def check_time(request: SequenceRequest, num_written: int) -> None:
    """Raise `DeadlineExceeded` if the request's time has run out."""
    if time.monotonic() > request.deadline_s:
        raise DeadlineExceeded(f"the time ran out after {num_written} tokens")


def end_of(token_ids: Sequence[int], max_new_tokens: int, rules: GenerationRules) -> FinishReason | None:
    """Return why an answer ends with the last of `token_ids`, None if it goes on; a forced end counts as cut."""
    is_full, is_end = len(token_ids) >= max_new_tokens, token_ids[-1] in rules.eos_token_ids
    if is_full and (not is_end or rules.forced_eos_token_id == token_ids[-1]):
        return "length"
    return "stop" if is_end else None


def choose_next_tokens(sequences: Sequence[SingleSequence], logits: Tensor) -> None:
    """Give each sequence the next token by its row of `logits` (R, V); one that fails notes its error."""
    ruled = [(row, sequence) for row, sequence in enumerate(sequences) if sequence.has_rule_now]
    scores = logits.to(torch.float32, copy=bool(ruled))
    for row, sequence in ruled:
        scores[row] = sequence.allowed(scores[row])
    logprobs = torch.log_softmax(scores, dim=-1)
    for row, sequence in enumerate(sequences):
        if sequence.is_constrained_now:
            logprobs[row] = sequence.constrained(logprobs[row])
    greedy_logprobs, greedy_ids = (column.tolist() for column in logprobs.max(dim=-1))
    for row, sequence in enumerate(sequences):
        try:
            if sequence.request.temperature == 0 or greedy_logprobs[row] == -math.inf:
                sequence.take(greedy_ids[row], greedy_logprobs[row])
            else:
                token_id = sequence.sample(logprobs[row])
                sequence.take(token_id, float(logprobs[row, token_id]))
        except SequenceError as error:
            sequence.error = error


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return `probabilities` (V,) with 0 for all but the fewest tokens that together have at least `top_p`.

    Source: Holtzman et al., arXiv 1904.09751, section 3.1; the same choice as transformers' TopPLogitsWarper.
    """
    if top_p >= 1:
        return probabilities
    ascending, order = probabilities.sort()
    is_dropped = ascending.cumsum(dim=-1) <= 1 - top_p
    is_dropped[-1] = False
    return probabilities.index_fill(0, order[is_dropped], 0.0)


def _seed(request: SequenceRequest) -> int:
    return torch.seed() if request.seed is None else request.seed
