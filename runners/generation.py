"""Batched generation: sequences with different prompts and options in one batch, each as if it were alone.

    prefill(batch) -> state, logits;  repeat: choose a token for every sequence;  decode_step(state, tokens) -> logits

It knows a decoder by the two methods of `Decoder` and nothing of its family.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from runners.prompt_tokenizer import Segments
from runners.sequences import (
    GeneratedSequence,
    GenerationRules,
    LiveSequence,
    SequenceError,
    SequenceRequest,
)

StateT = TypeVar("StateT")


class Decoder(Protocol[StateT]):
    """A family's decoder, as the batch loop and the service around it see it."""

    rules: GenerationRules
    pad_token_id: int

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the token ids of a prompt with the tokens that the family puts around it."""
        ...

    def decode_text(self, token_ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text of generated ids and the offset in it after each of them."""
        ...

    def max_new_tokens(self, num_read: int) -> int:
        """Return how many tokens fit after `num_read` tokens of image and prompt; raise `SequenceTooLong` if none."""
        ...

    def prefill(self, requests: Sequence[SequenceRequest]) -> tuple[StateT, Tensor]:
        """Read image features and prompts; return the state and the logits (B, V) of each first token."""
        ...

    def decode_step(self, state: StateT, token_ids: Tensor) -> Tensor:
        """Append `token_ids` (B,) to the state; return the logits (B, V) of each next token."""
        ...


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one sequence of a batch."""

    index: int  # its place in the batch
    outcome: GeneratedSequence | SequenceError
    prefill_s: float
    decode_s: float


@torch.inference_mode()
def generate(decoder: Decoder[StateT], requests: Sequence[SequenceRequest]) -> Iterator[Finished]:
    """Write all `requests` in one batch; yield each as soon as it ends, whatever the others still write."""
    start_s = time.monotonic()
    state, logits = decoder.prefill(requests)
    prefill_end_s = time.monotonic()
    live = {i: LiveSequence(request, decoder.rules) for i, request in enumerate(requests)}
    while True:
        for index, outcome in _advance(live, logits):
            del live[index]
            yield Finished(index, outcome, prefill_end_s - start_s, time.monotonic() - prefill_end_s)
        if not live:
            return
        logits = decoder.decode_step(state, _last_tokens(live, len(requests), decoder.pad_token_id))


def generate_all(decoder: Decoder[StateT], requests: Sequence[SequenceRequest]) -> list[GeneratedSequence]:
    """Write all `requests` in one batch and return them in order; raise the first `SequenceError`."""
    outcomes = {finished.index: finished.outcome for finished in generate(decoder, requests)}
    for outcome in outcomes.values():
        if isinstance(outcome, SequenceError):
            raise outcome
    return [outcome for _, outcome in sorted(outcomes.items()) if isinstance(outcome, GeneratedSequence)]


def _advance(live: dict[int, LiveSequence], logits: Tensor) -> list[tuple[int, GeneratedSequence | SequenceError]]:
    """Give every live sequence its next token; return those that ended with it."""
    ended: list[tuple[int, GeneratedSequence | SequenceError]] = []
    for index, sequence in live.items():
        try:
            sequence.append_next_token(logits[index])
        except SequenceError as error:
            ended.append((index, error))
            continue
        if sequence.finish_reason is not None:
            ended.append((index, sequence.result()))
    return ended


def _last_tokens(live: dict[int, LiveSequence], batch_size: int, pad_token_id: int) -> Tensor:
    """Return the last token of each live sequence at its place (B,), padding at the ended ones."""
    tokens = torch.full((batch_size,), pad_token_id, dtype=torch.long)
    for index, sequence in live.items():
        tokens[index] = sequence.token_ids[-1]
    return tokens
