"""Florence-2's decoder: BART's text encoder over image features and prompt, BART's decoder for the answer.

Shapes: B batch, N image tokens, S image and prompt (padded), C hidden, V vocabulary. Prompts are padded on the right,
and every mask hides the padding, so that it never changes an answer. Knows no tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import BartConfig

from runners.artifacts.manifest import DECODER_FILE, TOKENIZER_FILE, Precision, read_config
from runners.decoder.constraints import Constraints
from runners.decoder.cuda_graphs import Record, StaticSteps, record_cuda_graph
from runners.decoder.errors import SequenceTooLong
from runners.decoder.kv_cache import CacheShape, KeyValueCache
from runners.decoder.rules import GenerationRules
from runners.decoder.sequences import SequenceRequest
from runners.decoder.tokenizer import PromptTokenizer, Segments, TextStream
from runners.models.bart import Bart, BartStep
from runners.models.batch_inputs import stack_inputs
from runners.models.weights import DecoderWeights


@dataclass(slots=True)
class Florence2Cache:
    """What the decoder has read and written, by slot."""

    read: KeyValueCache  # keys and values of the text encoder's output
    written: KeyValueCache
    num_read: Tensor  # (slots,)
    num_written: Tensor  # (slots,) start token included
    static_steps: StaticSteps | None = None  # on a card


class Florence2Decoder:
    """Everything of a Florence-2 checkpoint after its image features."""

    def __init__(
        self,
        bart: Bart,
        tokenizer: PromptTokenizer,
        constraints: Constraints,
        rules: GenerationRules,
        config: dict[str, Any],
    ) -> None:
        self.rules = rules
        self.constraints = constraints
        self.pad_token_id: int = config["text_config"]["pad_token_id"]
        self._bart = bart
        self._device = bart.embeddings.device
        self._tokenizer = tokenizer
        self._bos_token_id: int = config["text_config"]["bos_token_id"]
        self._eos_token_id: int = config["text_config"]["eos_token_id"]
        start_token_id = rules.decoder_start_token_id
        if start_token_id is None:
            start_token_id = config["text_config"]["decoder_start_token_id"]
        self._start_token_id: int = start_token_id
        self._num_layers: int = config["text_config"]["decoder_layers"]
        self._num_heads: int = config["text_config"]["decoder_attention_heads"]
        self._max_positions: int = config["text_config"]["max_position_embeddings"]

    @classmethod
    def load(cls, folder: Path, precision: Precision, device: str) -> Self:
        """Load the decoder of an artifact folder onto `device`."""
        config = read_config(folder)
        weights = DecoderWeights.open(folder / DECODER_FILE, precision, device)
        bart = Bart(BartConfig(**config["text_config"]), weights)
        tokenizer_file = folder / TOKENIZER_FILE
        rules = GenerationRules.load(folder)
        constraints = Constraints.load(tokenizer_file, rules.eos_token_ids)
        return cls(bart, PromptTokenizer.load(tokenizer_file), constraints, rules, config)

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return `<s> prompt </s>`; source: transformers, models/florence2/processing_florence2.py."""
        return (self._bos_token_id, *self._tokenizer.encode(segments), self._eos_token_id)

    def text_stream(self) -> TextStream:
        """Return a stream that makes text of the generated ids of one answer."""
        return self._tokenizer.text_stream()

    def max_new_tokens(self, num_read: int) -> int:
        """Return the decoder's positions: BART has one table of them for its encoder and one for its decoder."""
        if num_read > self._max_positions:
            raise SequenceTooLong(f"image and prompt are {num_read} tokens, there is room for {self._max_positions}")
        return self._max_positions

    def limit_positions(self, most: int) -> None:
        """Let no sequence have more than `most` positions, so that the slots of a new cache are smaller."""
        self._max_positions = min(self._max_positions, most)

    def new_cache(self, num_slots: int) -> Florence2Cache:
        """Return memory for `num_slots` sequences of any length that is allowed."""
        shape = CacheShape(num_slots, self._num_heads, self._max_positions, self._bart.head_size)
        dtype = self._bart.embeddings.dtype
        read, written = (KeyValueCache(self._num_layers, shape, dtype, self._device) for _ in range(2))
        counts = torch.zeros(2, num_slots, dtype=torch.long, device=self._device)
        cache = Florence2Cache(read, written, counts[0], counts[1])
        if self._device.type == "cuda":
            cache.static_steps = self.static_steps(cache, record_cuda_graph)
        return cache

    def static_steps(self, cache: Florence2Cache, record: Record) -> StaticSteps:
        """Return the recorded steps of `cache`."""

        def step(token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
            return self._step(cache, slice(0, len(token_ids)), token_ids, lengths)

        return StaticSteps(step, len(cache.num_read), self._max_positions, self._device, record)

    def prefill(self, cache: Florence2Cache, requests: Sequence[SequenceRequest], first_slot: int) -> Tensor:
        """Run the text encoder over image features and prompts into the slots from `first_slot` on.

        Return the logits (B, V) of each first token.
        """
        inputs = stack_inputs(requests, self.pad_token_id, self._device, self._bart.embeddings.dtype)
        inputs_embeds = torch.cat([inputs.image_features, self._bart.embeddings[inputs.prompt_ids]], dim=1)
        is_read = torch.arange(inputs_embeds.shape[1], device=self._device) < inputs.num_read[:, None]
        slots = slice(first_slot, first_slot + len(requests))
        for layer, (keys, values) in enumerate(self._bart.encode(inputs_embeds, is_read[:, None, None])):
            cache.read.write_prefix(layer, slots, keys, values)
        cache.num_read[slots], cache.num_written[slots] = inputs.num_read, 0
        start = torch.full((len(requests),), self._start_token_id, device=self._device)
        logits = self._step(cache, slots, start, (1, inputs_embeds.shape[1]))
        cache.num_written[slots] = 1
        return logits

    def decode_step(self, cache: Florence2Cache, token_ids: Tensor) -> Tensor:
        """Read `token_ids` (B,) of slots 0 to B - 1; return the logits (B, V) of each next token."""
        slots = slice(0, len(token_ids))
        lengths = int(cache.num_written[slots].max()) + 1, int(cache.num_read[slots].max())
        if cache.static_steps is None:
            logits = self._step(cache, slots, token_ids.to(self._device), lengths)
        else:
            logits = cache.static_steps.logits(token_ids, lengths)
        cache.num_written[slots] += 1
        return logits

    def clear(self, cache: Florence2Cache, slot: int) -> None:
        """Forget what slot `slot` holds."""
        cache.read.clear(slot)
        cache.written.clear(slot)

    def copy(self, cache: Florence2Cache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Give each slot of `targets` what the slot at the same place of `sources` held before."""
        num_read = cache.num_read[list(sources)]
        cache.read.copy(sources, targets, slice(0, int(num_read.max())))
        cache.num_read[list(targets)] = num_read
        self.reorder(cache, sources, targets)

    def reorder(self, cache: Florence2Cache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Do the same among slots that read the same image and prompt: only what was written differs."""
        num_written = cache.num_written[list(sources)]
        cache.written.copy(sources, targets, slice(0, int(num_written.max())))
        cache.num_written[list(targets)] = num_written

    def _step(self, cache: Florence2Cache, slots: slice, token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Read a token of each slot; `lengths`: the most that is written (this token included) and that is read.

        A free slot counts as having read its first place, as a mask without any would make NaN.
        """
        num_written, num_read = lengths
        positions = cache.num_written[slots].clamp(max=num_written - 1)
        step = BartStep(
            slots,
            positions,
            num_written,
            _is_before(positions + 1, num_written),
            num_read,
            _is_before(cache.num_read[slots].clamp(min=1), num_read),
        )
        return self._bart.step(token_ids, step, cache.written, cache.read)


def _is_before(ends: Tensor, length: int) -> Tensor:
    """Return (B, 1, 1, length): which places lie before each end (B,)."""
    return (torch.arange(length, device=ends.device) < ends[:, None])[:, None, None]
