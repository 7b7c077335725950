"""The interface of a family's decoder, for the batch, the scheduler and the checks of the export.

Shapes: B or R rows, V vocabulary, M moves.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from runners.cuda_graphs.graphs import CudaGraphs
from runners.decoder.drafts import DraftedPass, PromptWords
from runners.decoder.sequences import SequenceRequest
from runners.tokens.constraints import Constraints
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import Detokenizer, Segments

CacheT = TypeVar("CacheT")


class Decoder(Protocol[CacheT]):
    """The decoder of a family."""

    rules: GenerationRules
    constraints: Constraints
    pad_token_id: int
    can_draft: bool  # False on a GPU, whose captured steps take one token of each slot
    can_draft_first: bool  # a prefill can read drafts too

    @property
    def adapter_keys(self) -> frozenset[str]:
        """The adapters that requests may name."""
        ...

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the token ids of a prompt, with the tokens that the family adds around it."""
        ...

    def prompt_words(self, prompt_ids: Sequence[int]) -> PromptWords:
        """Return the tokens of a prompt as a source of drafts."""
        ...

    def text_stream(self) -> Detokenizer:
        """Return a detokenizer for one answer."""
        ...

    def max_new_tokens(self, num_prefix_tokens: int) -> int:
        """Return the number of tokens that fit after image and prompt.

        Raise `SequenceTooLong` if none fits.
        """
        ...

    @property
    def num_tokens(self) -> int:
        """The size of the vocabulary."""
        ...

    def slot_bytes(self) -> int:
        """Return the memory of a slot of the key-value cache."""
        ...

    def new_cache(self, num_slots: int) -> CacheT:
        """Allocate the key-value cache of `num_slots` sequences."""
        ...

    def prefill(
        self,
        cache: CacheT,
        requests: Sequence[SequenceRequest],
        first_slot: int,
        drafts: Sequence[Sequence[int]] = (),
    ) -> Tensor:
        """Process images and prompts into the slots from `first_slot` on.

        Return the logits (R, V) of each next token.

        The slots must be free. With `drafts`, one for each request, rows are those of
        `rows_of(drafts)`.
        """
        ...

    def decode_step(self, cache: CacheT, token_ids: Tensor) -> Tensor:
        """Process `token_ids` (B,) of slots 0 to B - 1.

        Return the logits (B, V) of each next token.
        """
        ...

    def decode_drafts(self, cache: CacheT, tokens: DraftedPass) -> Tensor:
        """Like `decode_step`, with further rows of logits for drafted tokens, which only `accept`
        keeps.
        """
        ...

    def accept(self, cache: CacheT, slots: Sequence[int], num_tokens: Sequence[int]) -> None:
        """Keep the first `num_tokens` drafted tokens of each of `slots`.

        The next pass overwrites the others.
        """
        ...

    def roll_back(self, cache: CacheT, slot: int) -> None:
        """Remove the last token of a slot, which a superfluous pass has added."""
        ...

    def clear(self, cache: CacheT, slot: int) -> None:
        """Zero a slot, so that its NaN cannot propagate into the next sequence."""
        ...

    def add_beams(self, cache: CacheT, source: int, targets: Sequence[int]) -> None:
        """Let `targets`, free slots, continue the sequence in `source` as its other beams."""
        ...

    def free(self, cache: CacheT, slot: int, last: int) -> None:
        """Free a slot; the sequence in `last`, the last slot in use, moves there."""
        ...

    def reorder(
        self,
        cache: CacheT,
        sources: Sequence[int],
        targets: Sequence[int],
        on_device: Tensor | None = None,
    ) -> None:
        """Copy the generated tokens of `sources` to `targets`, pairwise.

        All are read before any is written.

        The slots are beams of the same sequences. `on_device` are sources and targets (2, M) on the
        decoder's device, which need not be copied there.
        """
        ...

    def recorded(self, cache: CacheT) -> CudaGraphs | None:
        """Return the recorded steps of a cache, which also choose tokens; None where steps run
        eagerly.
        """
        ...
