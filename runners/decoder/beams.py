"""Beam search of one sequence, with the tokens, order and stopping of transformers' `generate`.

Source: transformers 5.24, generation/utils.py (`_beam_search` and its helpers). A beam is a row of
the batch; after each step a row continues the beam of its parent row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from runners.decoder.sequences import GeneratedSequence, LiveSequence
from runners.tokens.conditions import Choice, RowConditions
from runners.tokens.constraints import ConstraintState
from runners.tokens.errors import NonFiniteLogits, SequenceError
from wire.runner_messages import FinishReason

_UNUSED_ROW_SCORE = -1e9  # transformers' score of a row without a beam


@dataclass(frozen=True, slots=True)
class Beam:
    """A partial answer; `score` is the sum of its log-probabilities."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    state: ConstraintState | None = None
    num_constrained: int = 0  # tokens that the constraint chose against the model


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beam extended by one token, and the row that it extends."""

    beam: Beam
    parent: int
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    """A complete answer; `score` is its mean log-probability if the length penalty is 1."""

    beam: Beam
    score: float
    finish_reason: FinishReason


@dataclass(slots=True, eq=False)
class BeamSequence(LiveSequence):
    """A sequence with `num_beams` rows."""

    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    finished: list[FinishedBeam] = field(default_factory=list)  # best first, at most `num_beams`

    @property
    def num_tokens(self) -> int:
        return len(self.beams[0].token_ids)

    @property
    def last_token_ids(self) -> Sequence[int]:
        return [beam.token_ids[-1] for beam in self.beams]

    @property
    def settled_token_ids(self) -> Sequence[int]:
        """The common prefix of all live and finished beams."""
        answers = [beam.token_ids for beam in self.beams]
        answers += [finished.beam.token_ids for finished in self.finished]
        # all others lie between these two in order
        pairs = zip(min(answers), max(answers), strict=False)
        return [first for first, last in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    # beams have no draft
    def conditions(self, draft: Sequence[int] = ()) -> Sequence[RowConditions]:  # noqa: ARG002
        return [self._conditions(beam) for beam in self.beams]

    def _conditions(self, beam: Beam) -> RowConditions:
        """Return a beam's conditions: enough candidates that `num_beams` remain if others end."""
        constraint = self.request.constraint
        forced = self.forced_token(len(beam.token_ids))
        allowed = None
        if forced is None and constraint is not None:
            allowed = constraint.allowed(beam.state or constraint.start())
        return RowConditions(
            forced=forced,
            banned=self.rules.banned_tokens(beam.token_ids),
            allowed=allowed,
            beam_score=beam.score,
            num_candidates=max(2, 1 + len(self.rules.eos_token_ids)) * self.num_rows,
        )

    def advance(self, choices: Sequence[Choice]) -> Sequence[int]:
        try:
            self.check_deadline()
            if any(math.isnan(choice.score) for choice in choices):
                raise NonFiniteLogits(f"the logits of token {self.num_tokens} are not finite")
            possible = [choice for choice in choices if choice.score > -math.inf]
            kept = self._keep_best([self._extended(choice) for choice in possible])
        except SequenceError as error:
            self.error = error
            return ()
        return [candidate.parent for candidate in kept]

    def _extended(self, choice: Choice) -> Candidate:
        before = self.beams[choice.row]
        constraint = self.request.constraint
        token_ids = (*before.token_ids, choice.token_id)
        state = before.state
        if constraint is not None and self.forced_token(len(before.token_ids)) is None:
            state = constraint.after(state or constraint.start(), choice.token_id)
        logprobs = (*before.logprobs, choice.logprob)
        num_constrained = before.num_constrained + choice.is_constrained
        beam = Beam(token_ids, logprobs, choice.score, state, num_constrained)
        return Candidate(beam, choice.row, self.finish_reason_of(token_ids))

    def _keep_best(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Collect finished beams, keep the best open ones as rows, and end the search if none of
        them can improve.
        """
        self._add_finished(candidates[: self.num_rows])
        kept = [each for each in candidates if each.finish_reason is None][: self.num_rows]
        if kept:
            # a forced token or a constraint can leave fewer candidates than rows
            unused = replace(kept[0], beam=replace(kept[0].beam, score=_UNUSED_ROW_SCORE))
            kept += [unused] * (self.num_rows - len(kept))
            self.beams = [candidate.beam for candidate in kept]
        if not kept or not self._may_improve():
            self.finish_reason = self.finished[0].finish_reason if self.finished else "length"
        return kept

    def _add_finished(self, candidates: Sequence[Candidate]) -> None:
        """Add those that have ended and keep the best `num_beams`; early stopping closes a full
        list.
        """
        if self._is_full and self.rules.early_stopping is True:
            return
        for beam, reason in [(each.beam, each.finish_reason) for each in candidates]:
            if reason is not None:
                score = beam.score / len(beam.token_ids) ** self.rules.length_penalty
                self.finished.append(FinishedBeam(beam, score, reason))
        # stable: equal scores keep their order
        self.finished.sort(key=lambda finished: -finished.score)
        del self.finished[self.num_rows :]

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self.num_rows

    def _may_improve(self) -> bool:
        """Return True if an open beam can still beat the worst finished one."""
        if not self._is_full:
            return True
        if self.rules.early_stopping is True:
            return False
        is_never = self.rules.early_stopping == "never" and self.rules.length_penalty > 0
        length = self.request.max_new_tokens if is_never else self.num_tokens
        best = self.beams[0].score / float(length**self.rules.length_penalty)
        return best > self.finished[-1].score

    def generated(self, finish_reason: FinishReason) -> GeneratedSequence:
        best = self.finished[0].beam if self.finished else self.beams[0]
        return GeneratedSequence(best.token_ids, best.logprobs, finish_reason, best.num_constrained)
