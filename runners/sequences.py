"""One sequence: what a decoder is asked for, how its next token is chosen, and when it ends.

Plain values and rules; it knows nothing of slots, caches or families.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from runners.artifacts import GENERATION_CONFIG_FILE
from runners.messages import FailureCode, FinishReason


class SequenceError(Exception):
    """Why one sequence failed, alone.

    SequenceError
    ├── NonFiniteLogits     the model computed NaN or infinity for it
    ├── DeadlineExceeded    its time ran out before its end
    ├── SequenceTooLong     prompt and new tokens do not fit the model's positions
    └── Overloaded          too many sequences wait already
    """

    code: FailureCode = "internal"


class NonFiniteLogits(SequenceError):
    """The model computed NaN or infinity for this sequence."""

    code = "non_finite_logits"


class DeadlineExceeded(SequenceError):
    """The time given to this sequence ran out."""

    code = "deadline_exceeded"


class SequenceTooLong(SequenceError):
    """Prompt and new tokens do not fit the model's positions."""

    code = "sequence_too_long"


class Overloaded(SequenceError):
    """Too many sequences wait already."""

    code = "overloaded"


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """What a checkpoint's generation_config.json demands of every answer; names and meaning are transformers'."""

    eos_token_ids: frozenset[int]
    max_new_tokens: int | None
    decoder_start_token_id: int | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | None
    no_repeat_ngram_size: int

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the rules from an artifact folder."""
        config: dict[str, Any] = json.loads((folder / GENERATION_CONFIG_FILE).read_text(encoding="utf-8"))
        eos = config["eos_token_id"]
        return cls(
            eos_token_ids=frozenset(eos if isinstance(eos, list) else [eos]),
            max_new_tokens=config.get("max_new_tokens"),
            decoder_start_token_id=config.get("decoder_start_token_id"),
            forced_bos_token_id=config.get("forced_bos_token_id"),
            forced_eos_token_id=config.get("forced_eos_token_id"),
            no_repeat_ngram_size=config.get("no_repeat_ngram_size") or 0,
        )


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One sequence that a decoder shall write."""

    image_features: Tensor  # (N, C)
    prompt_ids: tuple[int, ...]  # with the tokens that the family puts around a prompt, without image tokens
    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # the most probable tokens that together have this probability; of no effect if greedy
    seed: int | None = None
    deadline_s: float = math.inf  # on the clock of time.monotonic()


@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """What a decoder wrote: every new token, the end token included, with its log-probability."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(slots=True, eq=False)
class LiveSequence:
    """A sequence while it is being written."""

    request: SequenceRequest
    rules: GenerationRules
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: SequenceError | None = None
    _generator: torch.Generator | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is written to its end or has failed."""
        return self.finish_reason is not None or self.error is not None

    @property
    def has_rule_now(self) -> bool:
        """Whether the checkpoint's rules may forbid tokens at the next place."""
        rules, position = self.rules, len(self.token_ids)
        is_first = position == 0 and rules.forced_bos_token_id is not None
        is_last = position == self.request.max_new_tokens - 1 and rules.forced_eos_token_id is not None
        return is_first or is_last or rules.no_repeat_ngram_size > 0

    def append(self, token_id: int, logprob: float) -> None:
        """Take the next token and note whether it is the last; raise `NonFiniteLogits` or `DeadlineExceeded`."""
        if time.monotonic() > self.request.deadline_s:
            raise DeadlineExceeded(f"the time ran out after {len(self.token_ids)} tokens")
        if not math.isfinite(logprob):
            raise NonFiniteLogits(f"the logits of token {len(self.token_ids)} are not finite")
        self.token_ids.append(token_id)
        self.logprobs.append(logprob)
        self._note_end(token_id)

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

    def _note_end(self, token_id: int) -> None:
        is_full = len(self.token_ids) >= self.request.max_new_tokens
        if is_full and (token_id not in self.rules.eos_token_ids or self.rules.forced_eos_token_id == token_id):
            self.finish_reason = "length"
        elif token_id in self.rules.eos_token_ids:
            self.finish_reason = "stop"

    def allowed(self, logits: Tensor) -> Tensor:
        """Return `logits` (V,) with every token that the rules forbid at -inf.

        Order and meaning are those of transformers' ForcedBOS, ForcedEOS and NoRepeatNGram logits processors.
        """
        rules, position = self.rules, len(self.token_ids)
        if rules.no_repeat_ngram_size and (banned := self._ngram_ends()):
            logits = logits.index_fill(0, torch.tensor(banned, device=logits.device), -math.inf)
        if position == 0 and rules.forced_bos_token_id is not None:
            return _only(logits, rules.forced_bos_token_id)
        if position == self.request.max_new_tokens - 1 and rules.forced_eos_token_id is not None:
            return _only(logits, rules.forced_eos_token_id)
        return logits

    def _ngram_ends(self) -> list[int]:
        """Return the tokens that would repeat an n-gram of what was written, start token included."""
        start = [] if self.rules.decoder_start_token_id is None else [self.rules.decoder_start_token_id]
        written, size = start + self.token_ids, self.rules.no_repeat_ngram_size
        tail = written[len(written) - size + 1 :]
        if len(written) < size:
            return []
        return [written[i + size - 1] for i in range(len(written) - size + 1) if written[i : i + size - 1] == tail]


def choose_next_tokens(sequences: Sequence[LiveSequence], logits: Tensor) -> None:
    """Give each sequence the next token by its row of `logits` (B, V); one that fails notes its error."""
    ruled = [(row, sequence) for row, sequence in enumerate(sequences) if sequence.has_rule_now]
    scores = logits.to(torch.float32, copy=bool(ruled))
    for row, sequence in ruled:
        scores[row] = sequence.allowed(scores[row])
    logprobs = torch.log_softmax(scores, dim=-1)
    greedy_logprobs, greedy_ids = (column.tolist() for column in logprobs.max(dim=-1))
    for row, sequence in enumerate(sequences):
        try:
            if sequence.request.temperature == 0:
                sequence.append(greedy_ids[row], greedy_logprobs[row])
            else:
                token_id = sequence.sample(scores[row])
                sequence.append(token_id, float(logprobs[row, token_id]))
        except SequenceError as error:
            sequence.error = error


def _only(logits: Tensor, token_id: int) -> Tensor:
    forced = torch.full_like(logits, -math.inf)
    forced[token_id] = 0.0
    return forced


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
