"""A decoder with the real interface whose answer is its prompt.

Token t of the answer is `prompt_ids[t]`; the end token follows the last.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from runners.decoder.drafts import DraftedPass, PromptWords, width_of
from runners.decoder.sequences import SequenceRequest
from runners.tokens.constraints import Constraints
from runners.tokens.errors import SequenceTooLong
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import Segments
from tests.support.tiny_tokenizer import tiny_tokenizer

VOCABULARY_SIZE = 50
# A prompt with POISON gives NaN logits for itself; one with CRASH fails its whole batch.
EOS = 1
SHORT_OF_MEMORY = 47
POISON = 48
CRASH = 49
MAX_POSITIONS = 64

MAX_PREFILL = 2  # sequences; a larger prefill with SHORT_OF_MEMORY in a prompt runs out of memory
FAKE_RULES = GenerationRules(frozenset({EOS}))
FAKE_TOKENIZER = tiny_tokenizer(
    {i: chr(i - 2 + ord("a")) for i in range(2, 28)}, {0: "<pad>", EOS: "<eos>"}
)


@dataclass(slots=True)
class FakeCache:
    """The answer of each slot and the number of its generated tokens."""

    answers: list[tuple[int, ...]]
    num_generated: list[int]


class FakeText:
    """One character for each token."""

    def push(self, token_id: int) -> str:
        return chr(token_id - 2 + ord("a"))


@dataclass(slots=True)
class FakeDecoder:
    """Repeats each prompt; records the size of every prefill and step. A step takes `step_s`."""

    rules: GenerationRules = FAKE_RULES
    constraints: Constraints = field(default_factory=lambda: Constraints(FAKE_TOKENIZER, {EOS}))
    pad_token_id: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    step_sizes: list[int] = field(default_factory=list)
    draft_widths: list[int] = field(default_factory=list)  # one for each step that reads drafts
    adapter_keys: frozenset[str] = frozenset()
    num_tokens: int = VOCABULARY_SIZE
    can_draft: bool = True
    can_draft_first: bool = True
    step_s: float = 0.0
    failing_step: int | None = None  # the number of a step that raises

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return one id for each character: a is 2, b is 3."""
        return tuple(ord(character) - ord("a") + 2 for text, _ in segments for character in text)

    def prompt_words(self, prompt_ids: Sequence[int]) -> PromptWords:
        return PromptWords(prompt_ids, prompt_ids)

    def text_stream(self) -> FakeText:
        return FakeText()

    def max_new_tokens(self, num_prefix_tokens: int) -> int:
        if num_prefix_tokens >= MAX_POSITIONS:
            raise SequenceTooLong(
                f"image and prompt have {num_prefix_tokens} tokens; at most {MAX_POSITIONS - 1} are"
                " allowed"
            )
        return MAX_POSITIONS - num_prefix_tokens

    def slot_bytes(self) -> int:
        return 1

    def new_cache(self, num_slots: int) -> FakeCache:
        return FakeCache([()] * num_slots, [0] * num_slots)

    def prefill(
        self,
        cache: FakeCache,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        self.batch_sizes.append(len(requests))
        if any(CRASH in request.prompt_ids for request in requests):
            raise RuntimeError("the batch crashed")
        if len(requests) > MAX_PREFILL and any(
            SHORT_OF_MEMORY in request.prompt_ids for request in requests
        ):
            raise torch.OutOfMemoryError
        slots = range(first_slot, first_slot + len(requests))
        for slot, request in zip(slots, requests, strict=True):
            cache.answers[slot] = request.prompt_ids
            cache.num_generated[slot] = 0
        return self._logits(cache, slots, width_of(drafts) if drafts else 1)

    def decode_step(self, cache: FakeCache, token_ids: Tensor) -> Tensor:
        self.step_sizes.append(len(token_ids))
        if len(self.step_sizes) == self.failing_step:
            raise RuntimeError("the step failed")
        for slot in range(len(token_ids)):
            cache.num_generated[slot] += 1
        if self.step_s:
            time.sleep(self.step_s)
        return self._logits(cache, range(len(token_ids)))

    def decode_drafts(self, cache: FakeCache, tokens: DraftedPass) -> Tensor:
        self.draft_widths.append(width_of(tokens.drafts))
        self.decode_step(cache, torch.tensor(tokens.certain))
        return self._logits(cache, tokens.slots, width_of(tokens.drafts))

    def accept(self, cache: FakeCache, slots: Sequence[int], num_tokens: Sequence[int]) -> None:
        for slot, number in zip(slots, num_tokens, strict=True):
            cache.num_generated[slot] += number

    def roll_back(self, cache: FakeCache, slot: int) -> None:
        cache.num_generated[slot] -= 1

    def clear(self, cache: FakeCache, slot: int) -> None:
        cache.answers[slot] = ()

    def add_beams(self, cache: FakeCache, source: int, targets: Sequence[int]) -> None:
        self.reorder(cache, [source] * len(targets), targets)

    def free(self, cache: FakeCache, slot: int, last: int) -> None:
        self.reorder(cache, [last], [slot])

    def reorder(
        self,
        cache: FakeCache,
        sources: Sequence[int],
        targets: Sequence[int],
        on_device: Tensor | None = None,
    ) -> None:
        assert on_device is None
        held = [(cache.answers[source], cache.num_generated[source]) for source in sources]
        for target, (answer, num_generated) in zip(targets, held, strict=True):
            cache.answers[target] = answer
            cache.num_generated[target] = num_generated

    def recorded(self, cache: FakeCache) -> None:  # noqa: ARG002
        return None

    def _logits(self, cache: FakeCache, slots: range, width: int = 1) -> Tensor:
        logits = torch.zeros(len(slots) * width, VOCABULARY_SIZE)
        for row, (slot, offset) in enumerate(product(slots, range(width))):
            answer = cache.answers[slot]
            position = cache.num_generated[slot] + offset
            token_id = answer[position] if position < len(answer) else EOS
            logits[row, token_id] = 10.0
            if token_id == POISON:
                logits[row] = float("nan")
        return logits
