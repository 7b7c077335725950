"""A decoder with the real interface whose answer is its prompt.

Token t of the answer is `prompt_ids[t]`; the end token follows the last. The prompt is in the keys
of its slot, its length and the position of the first logits in the values.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import Tensor

from runners.adapters.low_rank import Adapters
from runners.kv_cache import DecoderShape, SlotCache, Slots, TokenPlaces
from runners.tokens.text import CheckpointText, Constraints, GenerationRules, PromptTokenizer


def tiny_tokenizer(text: Mapping[int, str], control: Mapping[int, str]) -> dict[str, Any]:
    """Return a byte-level `tokenizer.json` as BART's, with these tokens and no merges."""
    vocabulary = {content: token_id for token_id, content in {**text, **control}.items()}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control.values()))
    values: dict[str, Any] = json.loads(tokenizer.to_str())
    return values


VOCABULARY_SIZE = 50
# A prompt with POISON gives NaN logits for itself; one with CRASH fails its whole batch.
EOS = 1
SHORT_OF_MEMORY = 47
POISON = 48
CRASH = 49
MAX_POSITIONS = 64

HIDDEN_SIZE = 4
_EMBEDDED = 1000  # tells a token from a feature
START = 46  # begins every answer
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
        bare_ids={},
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
    start_token_id: int | None = START
    step_s: float = 0.0
    failing_steps: Sequence[int] = ()  # the numbers of steps that raise

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,
        first: TokenPlaces | None,
    ) -> Tensor:
        self.batch_sizes.append(len(embeds))
        ids = (embeds[..., 0].long() - _EMBEDDED).clamp(min=0)  # 0: an image or padding
        if (ids == CRASH).any():
            raise RuntimeError("the batch crashed")
        if len(embeds) > MAX_PREFILL and (ids == SHORT_OF_MEMORY).any():
            raise torch.OutOfMemoryError
        stored = torch.zeros(len(embeds), MAX_POSITIONS, 2, 1, 1)
        for row, row_ids, prefix in zip(stored, ids, num_prefix_tokens, strict=True):
            prompt_ids = row_ids[row_ids > 0]
            row[: len(prompt_ids), 0, 0, 0] = prompt_ids
            row[0, 1] = len(prompt_ids)
            row[1, 1] = prefix - 1 if first is None else prefix
        cache.self_attention.write_prefix(0, slots, stored)
        positions = num_prefix_tokens[:, None] - 1 if first is None else first.positions
        return self._logits(cache, slots, positions)

    def embed(self, token_ids: Tensor) -> Tensor:
        return (_EMBEDDED + token_ids)[..., None].float().expand(*token_ids.shape, HIDDEN_SIZE)

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        self.step_sizes.append(len(places.token_ids))
        if len(self.step_sizes) in self.failing_steps:
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
        for prompt, (size, prefix), row_positions in zip(
            prompts[:, 0, :, 0].int().tolist(),
            lengths[:, 0, :2, 0].int().tolist(),
            positions.tolist(),
            strict=True,
        ):
            answer = [*prompt[:size], EOS]
            for position in row_positions:
                token_id = answer[min(position - prefix, size)]
                logits = torch.zeros(VOCABULARY_SIZE)
                logits[token_id] = 10.0
                rows.append(logits if token_id != POISON else logits * torch.nan)
        return torch.stack(rows)
