"""A decoder with the real interface that writes what its prompt says, so that tests know every answer.

The prompt ids are the answer: token t of the answer is prompt_ids[t], and the end token comes after the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runners.prompt_tokenizer import Segments
from runners.sequences import GenerationRules, SequenceRequest, SequenceTooLong

VOCABULARY_SIZE = 50
EOS, POISON, CRASH = 1, 48, 49  # a prompt with POISON computes NaN for itself; one with CRASH fails its whole batch
MAX_POSITIONS = 64

FAKE_RULES = GenerationRules(
    eos_token_ids=frozenset({EOS}),
    max_new_tokens=None,
    decoder_start_token_id=None,
    forced_bos_token_id=None,
    forced_eos_token_id=None,
    no_repeat_ngram_size=0,
)


@dataclass(slots=True)
class FakeState:
    """The answers of one batch and how far each is."""

    answers: list[tuple[int, ...]]
    position: int = 0


@dataclass(slots=True)
class FakeDecoder:
    """Writes each prompt back; notes the size of every batch."""

    rules: GenerationRules = FAKE_RULES
    pad_token_id: int = 0
    batch_sizes: list[int] = field(default_factory=list)

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return one id for each character: a is 2, b is 3."""
        return tuple(ord(character) - ord("a") + 2 for text, _ in segments for character in text)

    def decode_text(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the character of each id."""
        return "".join(chr(i - 2 + ord("a")) for i in token_ids), tuple(range(1, len(token_ids) + 1))

    def max_new_tokens(self, num_read: int) -> int:
        """Return the positions left."""
        if num_read >= MAX_POSITIONS:
            raise SequenceTooLong(f"{num_read} tokens are read, there are {MAX_POSITIONS} positions")
        return MAX_POSITIONS - num_read

    def prefill(self, requests: Sequence[SequenceRequest]) -> tuple[FakeState, Tensor]:
        """Note the answers; return the logits of each first token."""
        self.batch_sizes.append(len(requests))
        if any(CRASH in request.prompt_ids for request in requests):
            raise RuntimeError("the batch crashed")
        state = FakeState([request.prompt_ids for request in requests])
        return state, self._logits(state)

    def decode_step(self, state: FakeState, token_ids: Tensor) -> Tensor:
        """Go on by one token."""
        if len(token_ids) != len(state.answers):
            raise ValueError(f"{len(token_ids)} tokens for {len(state.answers)} sequences")
        state.position += 1
        return self._logits(state)

    def _logits(self, state: FakeState) -> Tensor:
        logits = torch.zeros(len(state.answers), VOCABULARY_SIZE)
        for row, answer in enumerate(state.answers):
            token_id = answer[state.position] if state.position < len(answer) else EOS
            logits[row, token_id] = 10.0
            if token_id == POISON:
                logits[row] = float("nan")
        return logits
