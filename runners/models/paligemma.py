"""PaliGemma's decoder: Gemma (1 or 2) over image features, prompt and answer.

Shapes: B batch, N image tokens, S image and prompt (padded), C hidden, V vocabulary. Attention over image and prompt is
bidirectional, positions start at 1. Prompts are padded on the right; every mask hides the padding, and the answer is
written over it, so that it never changes an answer. Knows no tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Gemma2Config, GemmaConfig

from runners.artifacts.manifest import DECODER_FILE, TOKENIZER_FILE, Precision, read_config
from runners.decoder.constraints import Constraints
from runners.decoder.cuda_graphs import Record, StaticSteps, record_cuda_graph
from runners.decoder.errors import SequenceTooLong
from runners.decoder.kv_cache import CacheShape, KeyValueCache
from runners.decoder.rules import GenerationRules
from runners.decoder.sequences import SequenceRequest
from runners.decoder.tokenizer import PromptTokenizer, Segments, TextStream
from runners.models.batch_inputs import stack_inputs
from runners.models.gemma import Gemma, GemmaPass
from runners.models.weights import DecoderWeights

_FIRST_POSITION = 1
_CONFIGS: dict[str, type[GemmaConfig] | type[Gemma2Config]] = {
    "gemma": GemmaConfig,  # PaliGemma
    "gemma2": Gemma2Config,  # PaliGemma 2
}


@dataclass(slots=True)
class PaliGemmaCache:
    """What the decoder has read and written, by slot."""

    tokens: KeyValueCache
    num_tokens: Tensor  # (slots,) image, prompt and what was written
    num_read: Tensor  # (slots,) image and prompt
    static_steps: StaticSteps | None = None  # on a card


class PaliGemmaDecoder:
    """Everything of a PaliGemma checkpoint after its image features."""

    def __init__(
        self,
        gemma: Gemma,
        tokenizer: PromptTokenizer,
        constraints: Constraints,
        rules: GenerationRules,
        config: dict[str, Any],
    ) -> None:
        self.rules = rules
        self.constraints = constraints
        self.pad_token_id: int = config["pad_token_id"]
        self._gemma = gemma
        self._device = gemma.device
        self._tokenizer = tokenizer
        self._bos_token_id: int = config["bos_token_id"]
        self._num_layers: int = config["text_config"]["num_hidden_layers"]
        self._max_positions: int = config["text_config"]["max_position_embeddings"]

    @classmethod
    def load(cls, folder: Path, precision: Precision, device: str) -> Self:
        """Load the decoder of an artifact folder onto `device`."""
        config = read_config(folder)
        text_config = _CONFIGS[config["text_config"]["model_type"]](**config["text_config"])
        gemma = Gemma(text_config, DecoderWeights.open(folder / DECODER_FILE, precision, device))
        tokenizer_file = folder / TOKENIZER_FILE
        rules = GenerationRules.load(folder)
        constraints = Constraints.load(tokenizer_file, rules.eos_token_ids)
        return cls(gemma, PromptTokenizer.load(tokenizer_file), constraints, rules, config)

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        r"""Return `<bos> prompt \n`; source: transformers, models/paligemma/processing_paligemma.py."""
        return (self._bos_token_id, *self._tokenizer.encode([*segments, ("\n", False)]))

    def text_stream(self) -> TextStream:
        """Return a stream that makes text of the generated ids of one answer."""
        return self._tokenizer.text_stream()

    def max_new_tokens(self, num_read: int) -> int:
        """Return the positions left: Gemma has one range of them for image, prompt and answer."""
        if num_read >= self._max_positions:
            raise SequenceTooLong(f"image and prompt are {num_read} tokens, there is room for {self._max_positions}")
        return self._max_positions - num_read

    def limit_positions(self, most: int) -> None:
        """Let no sequence have more than `most` positions, so that the slots of a new cache are smaller."""
        self._max_positions = min(self._max_positions, most)

    def new_cache(self, num_slots: int) -> PaliGemmaCache:
        """Return memory for `num_slots` sequences of any length that is allowed."""
        shape = CacheShape(num_slots, self._gemma.num_key_value_heads, self._max_positions, self._gemma.head_size)
        tokens = KeyValueCache(self._num_layers, shape, self._gemma.dtype, self._device)
        counts = torch.zeros(2, num_slots, dtype=torch.long, device=self._device)
        cache = PaliGemmaCache(tokens, counts[0], counts[1])
        if self._device.type == "cuda":
            cache.static_steps = self.static_steps(cache, record_cuda_graph)
        return cache

    def static_steps(self, cache: PaliGemmaCache, record: Record) -> StaticSteps:
        """Return the recorded steps of `cache`."""

        def step(token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
            return self._step(cache, token_ids, lengths)

        return StaticSteps(step, len(cache.num_read), self._max_positions, self._device, record)

    def prefill(self, cache: PaliGemmaCache, requests: Sequence[SequenceRequest], first_slot: int) -> Tensor:
        """Run Gemma over image features and prompts into the slots from `first_slot` on.

        Return the logits (B, V) of each first token. Inside the prefix a window does not count: transformers joins the
        prefix block to the window's mask.
        """
        inputs = stack_inputs(requests, self.pad_token_id, self._device, self._gemma.dtype)
        inputs_embeds = torch.cat([inputs.image_features, self._gemma.embed(inputs.prompt_ids)], dim=1)
        places = torch.arange(inputs_embeds.shape[1], device=self._device)
        is_visible = (places < inputs.num_read[:, None])[:, None, None]
        passed = GemmaPass(*self._gemma.rotation(places[None] + _FIRST_POSITION), is_visible, is_visible)
        slots = slice(first_slot, first_slot + len(requests))
        hidden_states = self._gemma.read_prefix(inputs_embeds, passed, slots, cache.tokens)
        cache.num_tokens[slots] = cache.num_read[slots] = inputs.num_read
        return self._gemma.logits(hidden_states[torch.arange(len(requests)), inputs.num_read - 1])

    def decode_step(self, cache: PaliGemmaCache, token_ids: Tensor) -> Tensor:
        """Read `token_ids` (B,) of slots 0 to B - 1; return the logits (B, V) of each next token."""
        slots = slice(0, len(token_ids))
        lengths = (int(cache.num_tokens[slots].max()) + 1,)
        if cache.static_steps is None:
            logits = self._step(cache, token_ids.to(self._device), lengths)
        else:
            logits = cache.static_steps.logits(token_ids, lengths)
        cache.num_tokens[slots] += 1
        return logits

    def clear(self, cache: PaliGemmaCache, slot: int) -> None:
        """Forget what slot `slot` holds."""
        cache.tokens.clear(slot)

    def copy(self, cache: PaliGemmaCache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Give each slot of `targets` what the slot at the same place of `sources` held before."""
        self._copy(cache, sources, targets, first=0)
        cache.num_read[list(targets)] = cache.num_read[list(sources)]

    def reorder(self, cache: PaliGemmaCache, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Do the same among slots that read the same image and prompt: only what was written differs."""
        self._copy(cache, sources, targets, first=int(cache.num_read[list(sources)].min()))

    def _copy(self, cache: PaliGemmaCache, sources: Sequence[int], targets: Sequence[int], first: int) -> None:
        num_tokens = cache.num_tokens[list(sources)]
        cache.tokens.copy(sources, targets, slice(first, int(num_tokens.max())))
        cache.num_tokens[list(targets)] = num_tokens

    def _step(self, cache: PaliGemmaCache, token_ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Read a token of slots 0 to B - 1; `lengths`: the most tokens of a slot, this one included."""
        (num_tokens,) = lengths
        places = cache.num_tokens[: len(token_ids)].clamp(max=num_tokens - 1)
        hidden_states = self._gemma.embed(token_ids)[:, None]
        states = self._gemma.step(hidden_states, self._pass(places, num_tokens), places, cache.tokens)
        return self._gemma.logits(states[:, 0])

    def _pass(self, places: Tensor, num_tokens: int) -> GemmaPass:
        """Return what one step needs whose tokens stand at `places` (B,) of the first `num_tokens`."""
        distance = places[:, None] - torch.arange(num_tokens, device=places.device)  # (B, S)
        is_visible = distance >= 0
        window = self._gemma.sliding_window
        is_near = is_visible if window is None else is_visible & (distance < window)
        rotation = self._gemma.rotation(places[:, None] + _FIRST_POSITION)
        return GemmaPass(*rotation, is_visible[:, None, None], is_near[:, None, None])
