"""A decoder with the real interface whose answer is its prompt.

Token t of the answer is `prompt_ids[t]`; the end token follows the last. The prompt is in the keys
of its slot, its length and that of the prefix in the values.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer
from torch import Tensor

from runners.adapters.low_rank import Adapters
from runners.decoder.engines import width_of
from runners.decoder.sequences import SequenceRequest
from runners.kv_cache.memory import DecoderShape, Slots
from runners.kv_cache.slot_cache import SlotCache, TokenPlaces
from runners.tokens.constraints import Constraints
from runners.tokens.rules import GenerationRules
from runners.tokens.text import CheckpointText, PromptTokenizer
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
FAKE_SHAPE = DecoderShape(
    num_layers=1,
    num_heads=1,
    num_positions=MAX_POSITIONS,
    head_size=1,
    num_tokens=VOCABULARY_SIZE,
    dtype=torch.float32,
    device=torch.device("cpu"),
)


def fake_text() -> CheckpointText:
    """Return one token for each character: a is 2, b is 3."""
    tokenizer = Tokenizer.from_str(json.dumps(FAKE_TOKENIZER))
    return CheckpointText(
        PromptTokenizer(tokenizer, tokenizer),
        Constraints(FAKE_TOKENIZER, {EOS}),
        pad_token_id=0,
        start_ids=(),
        end_ids=(),
        labels_start_bare=False,
    )


@dataclass(slots=True)
class FakeDecoder:
    """Repeats each prompt; records the size of every prefill and step. A step takes `step_s`."""

    rules: GenerationRules = FAKE_RULES
    text: CheckpointText = field(default_factory=fake_text)
    shape: DecoderShape = FAKE_SHAPE
    adapters: Adapters = field(default_factory=Adapters)
    batch_sizes: list[int] = field(default_factory=list)
    step_sizes: list[int] = field(default_factory=list)
    draft_widths: list[int] = field(default_factory=list)  # widths of the steps that read drafts
    can_draft: bool = True
    can_draft_first: bool = True
    step_s: float = 0.0
    failing_step: int | None = None  # the number of a step that raises

    def prefill(
        self,
        cache: SlotCache,
        requests: Sequence[SequenceRequest],
        slots: range,
        drafts: Sequence[Sequence[int]],
    ) -> Tensor:
        self.batch_sizes.append(len(requests))
        if any(CRASH in request.prompt_ids for request in requests):
            raise RuntimeError("the batch crashed")
        if len(requests) > MAX_PREFILL and any(
            SHORT_OF_MEMORY in request.prompt_ids for request in requests
        ):
            raise torch.OutOfMemoryError
        for slot, request in zip(slots, requests, strict=True):
            stored = torch.zeros(1, MAX_POSITIONS, 2, 1, 1)
            stored[0, : len(request.prompt_ids), 0, 0, 0] = torch.tensor(request.prompt_ids)
            stored[0, :2, 1, 0, 0] = torch.tensor(
                [len(request.prompt_ids), request.num_prefix_tokens]
            )
            cache.self_attention.write_prefix(0, slice(slot, slot + 1), stored)
        starts = torch.tensor(cache.num_tokens.of(slots))[:, None]
        positions = starts - 1 + torch.arange(width_of(drafts))
        return self._logits(cache, slice(slots.start, slots.stop), positions)

    def embed(self, token_ids: Tensor) -> Tensor:
        raise NotImplementedError

    def prefill_fixed(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Tensor,
        prefixes: Tensor,
    ) -> Tensor:
        raise NotImplementedError

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        self.step_sizes.append(len(places.token_ids))
        if len(self.step_sizes) == self.failing_step:
            raise RuntimeError("the step failed")
        if places.token_ids.shape[1] > 1:
            self.draft_widths.append(places.token_ids.shape[1])
        if self.step_s:
            time.sleep(self.step_s)
        return self._logits(cache, places.slots, places.positions)

    def _logits(self, cache: SlotCache, slots: Slots, positions: Tensor) -> Tensor:
        """Return the logits (B * T, V) after the tokens at `positions` (B, T)."""
        prompts, lengths = cache.self_attention.read(0, slots, MAX_POSITIONS)
        rows = []
        for prompt, (size, prefix), own in zip(
            prompts[:, 0, :, 0].int().tolist(),
            lengths[:, 0, :2, 0].int().tolist(),
            positions.tolist(),
            strict=True,
        ):
            rows += [_row([*prompt[:size], EOS], position + 1 - prefix) for position in own]
        return torch.stack(rows)


def _row(answer: Sequence[int], place: int) -> Tensor:
    """Return the logits (V,) of an answer's token."""
    token_id = answer[min(place, len(answer) - 1)]
    logits = torch.zeros(VOCABULARY_SIZE)
    logits[token_id] = 10.0
    return torch.full_like(logits, torch.nan) if token_id == POISON else logits
