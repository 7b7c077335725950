"""The interface of a family's decoder: prompts, shapes, a prefill and a step.

The slots and lengths of its cache are the engine's (runners/kv_cache.py). Shapes: B rows, S image
and prompt, T tokens of a row, C hidden, R rows of logits, V vocabulary.
"""

from typing import Protocol

from torch import Tensor

from runners.adapters.low_rank import Adapters
from runners.kv_cache import DecoderShape, SlotCache, Slots, TokenPlaces
from runners.tokens.text import CheckpointText, GenerationRules


class Decoder(Protocol):
    """The decoder of a family."""

    rules: GenerationRules
    text: CheckpointText
    shape: DecoderShape
    # begins every answer: a prefill reads it, and drafts after it; None: no such token
    start_token_id: int | None

    @property
    def adapters(self) -> Adapters:
        """The adapters that requests may name."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings (…, C) of a prompt's tokens."""

    def prefill(
        self,
        cache: SlotCache,
        embeds: Tensor,
        num_prefix_tokens: Tensor,
        slots: Slots,
        first: TokenPlaces | None,
    ) -> Tensor:
        """Process images and prompts (B, S, C) of `num_prefix_tokens` (B,) into `slots`, and the
        start tokens with their drafts at `first`, using no value of the host.

        Return the logits (R, V) of each next token.
        """

    def decode_step(self, cache: SlotCache, places: TokenPlaces) -> Tensor:
        """Process tokens, without counting them; return the logits (B * T, V) after each."""
