"""Beam search of one sequence: the tokens, the order and the end that transformers' `generate` has.

Source: transformers 5.24, generation/utils.py (`_beam_search` and what it calls). A beam is a row of the batch; after a
step each row goes on from the row of its parent. Shapes: R rows (beams), V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch
from torch import Tensor

from runners.decoder.constraints import ConstraintState
from runners.decoder.errors import NonFiniteLogits, SequenceError
from runners.decoder.rules import GenerationRules
from runners.decoder.sequences import GeneratedSequence, SequenceRequest, check_time, end_of
from runners.transport.messages import FinishReason

_OUT_OF_THE_RUNNING = -1e9  # transformers' score of a row that holds no beam of its own


@dataclass(frozen=True, slots=True)
class Beam:
    """One of the answers that are followed; `score` is the sum of its log-probabilities."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0
    state: ConstraintState | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beam with one more token, and the row that it goes on from."""

    beam: Beam
    parent: int
    end: FinishReason | None


@dataclass(frozen=True, slots=True)
class FinishedBeam:
    """An answer that ended; `score` is its mean log-probability where the length penalty is 1."""

    beam: Beam
    score: float
    end: FinishReason


@dataclass(slots=True, eq=False)
class BeamSequence:
    """A sequence of `num_beams` rows."""

    request: SequenceRequest
    rules: GenerationRules
    beams: list[Beam] = field(default_factory=lambda: [Beam()])
    finished: list[FinishedBeam] = field(default_factory=list)  # best first, at most `num_beams`
    finish_reason: FinishReason | None = None
    error: SequenceError | None = None

    @property
    def num_rows(self) -> int:
        """One for each beam."""
        return self.request.num_beams

    @property
    def has_ended(self) -> bool:
        """Whether it is written to its end or has failed."""
        return self.finish_reason is not None or self.error is not None

    @property
    def last_token_ids(self) -> Sequence[int]:
        """The last token of each beam."""
        return [beam.token_ids[-1] for beam in self.beams]

    @property
    def settled_token_ids(self) -> Sequence[int]:
        """The tokens that all answers which may still be the best begin with."""
        answers = [beam.token_ids for beam in (*self.beams, *(finished.beam for finished in self.finished))]
        pairs = zip(min(answers), max(answers), strict=False)  # in their order, all others lie between these two
        return [first for first, last in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def advance(self, logits: Tensor) -> list[int]:
        """Take the next tokens by `logits`, (1, V) for the first and then (R, V); return each row's parent row.

        The parents of one that has ended mean nothing. One that fails notes its error.
        """
        try:
            check_time(self.request, len(self.beams[0].token_ids))
            kept = self._follow(self._candidates(torch.log_softmax(logits.float(), dim=-1)))
        except SequenceError as error:
            self.error = error
            return []
        return [candidate.parent for candidate in kept]

    def result(self) -> GeneratedSequence:
        """Return the best answer; raise the error of one that failed. Only for one that has ended."""
        if self.error is not None:
            raise self.error
        if self.finish_reason is None:
            raise ValueError("the sequence is not finished")
        best = self.finished[0].beam if self.finished else self.beams[0]
        return GeneratedSequence(best.token_ids, best.logprobs, self.finish_reason)

    def _candidates(self, logprobs: Tensor) -> list[Candidate]:
        """Return the best continuations of all beams, best first: enough that `num_beams` go on if others end."""
        if bool(torch.isnan(logprobs).any()):
            raise NonFiniteLogits(f"the logits of token {len(self.beams[0].token_ids)} are not finite")
        rows = torch.stack([self._allowed(beam, row) for beam, row in zip(self.beams, logprobs, strict=True)])
        totals = rows + torch.tensor([beam.score for beam in self.beams], device=rows.device)[:, None]
        num = max(2, 1 + len(self.rules.eos_token_ids)) * self.num_rows
        scores, places = totals.flatten().topk(min(num, totals.numel()))
        chosen = zip(scores.tolist(), places.tolist(), rows.flatten()[places].tolist(), strict=True)
        size = rows.shape[1]
        return [
            self._candidate(place // size, place % size, logprob, score)
            for score, place, logprob in chosen
            if score > -math.inf
        ]

    def _allowed(self, beam: Beam, logprobs: Tensor) -> Tensor:
        """Return a beam's row (V,) with what rules and pattern forbid at -inf."""
        limit, constraint = self.request.max_new_tokens, self.request.constraint
        allowed = self.rules.allowed(logprobs, beam.token_ids, limit)
        if constraint is None or self.rules.forced_token(len(beam.token_ids), limit) is not None:
            return allowed
        return constraint.masked(beam.state or constraint.start(), allowed)

    def _candidate(self, parent: int, token_id: int, logprob: float, score: float) -> Candidate:
        before, constraint = self.beams[parent], self.request.constraint
        token_ids = (*before.token_ids, token_id)
        is_forced = self.rules.forced_token(len(before.token_ids), self.request.max_new_tokens) is not None
        state = before.state
        if constraint is not None and not is_forced:
            state = constraint.after(state or constraint.start(), token_id)
        beam = Beam(token_ids, (*before.logprobs, logprob), score, state)
        return Candidate(beam, parent, end_of(token_ids, self.request.max_new_tokens, self.rules))

    def _follow(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Note what has ended, keep the best that goes on in every row, and end where nothing can improve."""
        self._finish([candidate for candidate in candidates[: self.num_rows] if candidate.end])
        open_candidates = [candidate for candidate in candidates if candidate.end is None]
        if not open_candidates:
            self._end()
            return []
        kept = open_candidates[: self.num_rows]
        missing = self.num_rows - len(kept)  # a forced token or a pattern can leave fewer choices than rows
        kept += [replace(kept[0], beam=replace(kept[0].beam, score=_OUT_OF_THE_RUNNING))] * missing
        self.beams = [candidate.beam for candidate in kept]
        if not self._may_improve():
            self._end()
        return kept

    def _finish(self, ended: Sequence[Candidate]) -> None:
        """Keep the best finished answers; once there are enough and the search stops early, no more."""
        if self._is_full and self.rules.early_stopping is True:
            return
        for candidate in ended:
            score = candidate.beam.score / len(candidate.beam.token_ids) ** self.rules.length_penalty
            assert candidate.end is not None
            self.finished.append(FinishedBeam(candidate.beam, score, candidate.end))
        self.finished.sort(key=lambda finished: -finished.score)  # stable: of equals the earlier stays first
        del self.finished[self.num_rows :]

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self.num_rows

    def _may_improve(self) -> bool:
        """Say whether a beam that goes on may still be better than the worst that is kept."""
        if not self._is_full:
            return True
        if self.rules.early_stopping is True:
            return False
        is_never = self.rules.early_stopping == "never" and self.rules.length_penalty > 0
        length = self.request.max_new_tokens if is_never else len(self.beams[0].token_ids)
        return self.beams[0].score / float(length**self.rules.length_penalty) > self.finished[-1].score

    def _end(self) -> None:
        self.finish_reason = self.finished[0].end if self.finished else "length"
