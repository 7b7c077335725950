"""One sequence: its request, the conditions on its next token, and its end.

A sequence has one row in each decode step, or one per beam. `conditions` are those of each row's
next token, and of the one after each token of a draft; they are read once a pass, and refer to
masks that are computed afterwards, those of all sequences together. `advance` appends
the chosen tokens, of a draft up to the first that differs, and returns each row's parent row, whose
cache it continues. A sequence that fails gets its `error`. Beam search has the tokens, order and
stopping of transformers' `generate` (5.24, generation/utils.py, `_beam_search` and its helpers).
Plain values and rules: logits, slots, caches and families are unknown here.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile, zip_longest
from random import Random

from torch import Tensor

from runners.errors import SequenceError
from runners.tokens.choice import Choice, RowConditions
from runners.tokens.text import Constraint, GenerationRules, PromptWords, TokenMasks
from wire.runner_messages import FinishReason

TokenListener = Callable[[Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """A sequence to generate."""

    image_features: Tensor  # (N, C), the groups of an image one after another
    # includes the tokens that the family adds around a prompt, but no image tokens
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    # sample from the most probable tokens whose probabilities sum to this; ignored if greedy
    top_p: float = 1.0
    seed: int | None = None
    num_beams: int = 1  # more than 1 only if greedy
    constraint: Constraint | None = None  # None: unconstrained
    deadline_s: float = math.inf  # time.monotonic() at which it expires
    # called with newly settled tokens, in the decoder's thread
    on_tokens: TokenListener | None = None
    prompt_words: PromptWords | None = None  # the source of drafts; used with a constraint only
    adapter: str | None = None  # one of the decoder's adapters, or None for the base model
    client: str = ""  # shares the decoder with others

    @property
    def num_prefix_tokens(self) -> int:
        return len(self.image_features) + len(self.prompt_ids)


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """All generated tokens, the end token included, with their log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    num_constrained: int = 0  # tokens that the constraint chose against the model


@dataclass(frozen=True, slots=True)
class WrittenSequence:
    """A generated sequence and its timings."""

    sequence: GeneratedSequence
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True, eq=False)
class _Generation(ABC):
    """Base of the two kinds of sequences: their request, state and end."""

    request: SequenceRequest
    rules: GenerationRules
    finish_reason: FinishReason | None = None
    error: SequenceError | None = None
    num_accepted: int = 0  # drafted tokens that the last `advance` appended

    @property
    def has_ended(self) -> bool:
        """True once the sequence is complete or has failed."""
        return self.finish_reason is not None or self.error is not None

    @property
    def has_one_token_left(self) -> bool:
        return self.num_tokens + 1 >= self.request.max_new_tokens

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """The number of generated tokens, equal for all rows."""

    @abstractmethod
    def generated(self) -> GeneratedSequence:
        """Return the complete sequence."""

    def result(self) -> GeneratedSequence:
        """Return the generated sequence, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.generated()

    def row_conditions(
        self, token_ids: Sequence[int], constraint: Constraint | None, masks: TokenMasks
    ) -> RowConditions:
        """Return the conditions of rules and constraint after `token_ids`; `masks` follow."""
        forced = self.rules.forced_token(len(token_ids), self.request.max_new_tokens)
        banned = self.rules.banned_tokens(token_ids) if self.rules.no_repeat_ngram_size else ()
        allowed = masks.add(constraint) if forced is None and constraint is not None else None
        return RowConditions(forced, banned, allowed)

    def check_deadline(self) -> None:
        if time.monotonic() > self.request.deadline_s:
            message = f"the deadline passed after {self.num_tokens} tokens"
            raise SequenceError("deadline_exceeded", message)

    def non_finite_error(self) -> SequenceError:
        message = f"the logits of token {self.num_tokens} are not finite"
        return SequenceError("non_finite_logits", message)

    def finish_reason_of(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Return why an answer ends with `token_ids`, or None; a forced end is "length"."""
        is_full = len(token_ids) >= self.request.max_new_tokens
        is_end = token_ids[-1] in self.rules.eos_token_ids
        if is_full and (not is_end or self.rules.forced_eos_token_id == token_ids[-1]):
            return "length"
        return "stop" if is_end else None


@dataclass(slots=True, eq=False)
class SingleSequence(_Generation):
    """A greedy or sampled sequence, with one row."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_constrained: int = 0
    _draft: Sequence[int] = ()
    _conditions: Sequence[RowConditions] = ()  # one for the next token, one after each draft token
    _constraint: Constraint | None = field(init=False)  # None: unconstrained
    _random: Random = field(init=False)

    def __post_init__(self) -> None:
        self._constraint = self.request.constraint
        self._random = Random(self.request.seed)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def last_token_ids(self) -> Sequence[int]:
        return self.token_ids[-1:]

    @property
    def settled_token_ids(self) -> Sequence[int]:
        return self.token_ids

    def propose(self) -> Sequence[int]:
        """Return the likely next tokens, for a draft."""
        if self.request.temperature:
            return ()
        num_tokens = len(self.token_ids)
        forced = self.rules.forced_token(num_tokens, self.request.max_new_tokens)
        draft = [] if forced is None else [forced]
        words = self.request.prompt_words
        if self._constraint is not None and words is not None:
            draft += words.continuation(self._constraint, self.token_ids)
        return draft[: self.request.max_new_tokens - num_tokens - 1]

    def conditions(self, masks: TokenMasks, draft: Sequence[int] = ()) -> Sequence[RowConditions]:
        request = self.request
        constraint = self._constraint
        written = [*self.token_ids] if draft else self.token_ids  # the draft follows
        conditions: list[RowConditions] = []
        for token_id in (None, *draft):
            if token_id is not None:
                if constraint is not None and conditions[-1].allowed is not None:
                    constraint = constraint.after(token_id)
                written.append(token_id)
            row = self.row_conditions(written, constraint, masks)
            if request.temperature:
                uniform = self._random.random()
                row = replace(
                    row, temperature=request.temperature, top_p=request.top_p, uniform=uniform
                )
            conditions.append(row)
        self._draft = draft
        self._conditions = conditions
        return conditions

    def advance(self, choices: Sequence[Choice]) -> Sequence[int]:
        self.num_accepted = 0
        try:
            self.check_deadline()
            for choice, conditions, drafted in zip_longest(choices, self._conditions, self._draft):
                self._append(choice, conditions)
                if self.has_ended or choice.token_id != drafted:
                    break
                self.num_accepted += 1
        except SequenceError as error:
            self.error = error
        return (0,)

    def _append(self, choice: Choice, conditions: RowConditions) -> None:
        """Append a token; without an allowed one (-inf) the answer ends."""
        if choice.logprob == -math.inf and conditions.allowed is not None:
            self.finish_reason = "stop"
            return
        if not math.isfinite(choice.logprob):
            raise self.non_finite_error()
        if self._constraint is not None and conditions.allowed is not None:
            if self._constraint is self.request.constraint:  # which other sequences share
                matcher = self._constraint.matcher.deep_copy()
                self._constraint = replace(self._constraint, matcher=matcher)
            self._constraint.consume(choice.token_id)
        self.token_ids.append(choice.token_id)
        self.logprobs.append(choice.logprob)
        self.num_constrained += choice.is_constrained
        self.finish_reason = self.finish_reason_of(self.token_ids)

    def generated(self) -> GeneratedSequence:
        assert self.finish_reason is not None
        return GeneratedSequence(
            tuple(self.token_ids), tuple(self.logprobs), self.finish_reason, self.num_constrained
        )


_UNUSED_ROW_SCORE = -1e9  # transformers' score of a row without a beam


@dataclass(frozen=True, slots=True)
class Beam:
    """A partial or complete answer; `score` is the sum of its log-probabilities."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    constraint: Constraint | None = None
    num_constrained: int = 0  # tokens that the constraint chose against the model
    parent: int = 0  # the row that it extends
    finish_reason: FinishReason | None = None  # of a complete answer


@dataclass(slots=True, eq=False)
class BeamSequence(_Generation):
    """A sequence with `num_beams` rows."""

    beams: list[Beam] = field(init=False)
    finished: list[Beam] = field(default_factory=list)  # best first, at most `num_beams`

    def __post_init__(self) -> None:
        self.beams = [Beam(constraint=self.request.constraint)]

    @property
    def num_tokens(self) -> int:
        return len(self.beams[0].token_ids)

    @property
    def last_token_ids(self) -> Sequence[int]:
        return [beam.token_ids[-1] for beam in self.beams]

    @property
    def settled_token_ids(self) -> Sequence[int]:
        """The common prefix of all live and finished beams."""
        answers = [beam.token_ids for beam in [*self.beams, *self.finished]]
        # all others lie between these two in order
        pairs = zip(min(answers), max(answers), strict=False)
        return [first for first, last in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def propose(self) -> Sequence[int]:
        return ()  # beams have no draft

    def conditions(self, masks: TokenMasks, _draft: Sequence[int] = ()) -> Sequence[RowConditions]:
        """Each beam has enough candidates that `num_beams` remain if others end."""
        num_candidates = max(2, 1 + len(self.rules.eos_token_ids)) * self.request.num_beams
        conditions: list[RowConditions] = []
        for beam in self.beams:
            row = self.row_conditions(beam.token_ids, beam.constraint, masks)
            conditions.append(replace(row, beam_score=beam.score, num_candidates=num_candidates))
        return conditions

    def advance(self, choices: Sequence[Choice]) -> Sequence[int]:
        """Keep the best open beams as rows, and end a search that cannot improve."""
        try:
            self.check_deadline()
            if any(math.isnan(choice.score) for choice in choices):
                raise self.non_finite_error()
            possible = [choice for choice in choices if choice.score > -math.inf]
            candidates = [self._extended(choice) for choice in possible]
        except SequenceError as error:
            self.error = error
            return ()
        self._add_finished(candidates[: self.request.num_beams])
        rows = [beam for beam in candidates if beam.finish_reason is None][: self.request.num_beams]
        if rows:
            # a forced token or a constraint can leave fewer candidates than rows
            unused = replace(rows[0], score=_UNUSED_ROW_SCORE)
            rows += [unused] * (self.request.num_beams - len(rows))
            self.beams = rows
        if not rows or not self._may_improve():
            self.finish_reason = self.finished[0].finish_reason if self.finished else "length"
        return [beam.parent for beam in rows]

    def _extended(self, choice: Choice) -> Beam:
        before = self.beams[choice.row]
        constraint = before.constraint
        forced = self.rules.forced_token(len(before.token_ids), self.request.max_new_tokens)
        if constraint is not None and forced is None:
            constraint = constraint.after(choice.token_id)
        token_ids = (*before.token_ids, choice.token_id)
        return Beam(
            token_ids,
            logprobs=(*before.logprobs, choice.logprob),
            score=choice.score,
            constraint=constraint,
            num_constrained=before.num_constrained + choice.is_constrained,
            parent=choice.row,
            finish_reason=self.finish_reason_of(token_ids),
        )

    def _add_finished(self, candidates: Sequence[Beam]) -> None:
        if len(self.finished) == self.request.num_beams and self.rules.early_stopping is True:
            return
        self.finished += [beam for beam in candidates if beam.finish_reason is not None]
        # stable: equal scores keep their order
        self.finished.sort(key=self._answer_score, reverse=True)
        del self.finished[self.request.num_beams :]

    def _answer_score(self, beam: Beam) -> float:
        return beam.score / float(len(beam.token_ids) ** self.rules.length_penalty)

    def _may_improve(self) -> bool:
        if len(self.finished) < self.request.num_beams:
            return True
        if self.rules.early_stopping is True:
            return False
        is_never = self.rules.early_stopping == "never" and self.rules.length_penalty > 0
        length = self.request.max_new_tokens if is_never else self.num_tokens
        best = self.beams[0].score / float(length**self.rules.length_penalty)
        return best > self._answer_score(self.finished[-1])

    def generated(self) -> GeneratedSequence:
        assert self.finish_reason is not None
        best = self.finished[0] if self.finished else self.beams[0]
        return GeneratedSequence(
            best.token_ids, best.logprobs, self.finish_reason, best.num_constrained
        )


LiveSequence = SingleSequence | BeamSequence
