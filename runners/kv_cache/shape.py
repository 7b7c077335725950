"""The shapes of a decoder: what a slot holds, and how many tokens fit."""

from dataclasses import dataclass

import torch

from runners.tokens.errors import SequenceTooLong


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The dimensions of keys and values, and the size of the vocabulary.

    With `has_prefixes`, cross-attention reads image and prompt, which have separate positions;
    otherwise image, prompt and answer share the positions of self-attention.
    """

    num_layers: int
    num_heads: int  # heads of keys and values
    num_positions: int  # positions of a slot
    head_size: int
    num_tokens: int  # size of the vocabulary
    dtype: torch.dtype
    device: torch.device
    has_prefixes: bool = False
    num_image_tokens: int = 0  # one image; 0: unknown

    @property
    def min_length(self) -> int:
        """The positions of self-attention that every sequence takes at least."""
        return 0 if self.has_prefixes else self.num_image_tokens

    @property
    def slot_bytes(self) -> int:
        """The memory of a slot: keys and values of self-attention and, if any, cross-attention."""
        num_values = 2 * self.num_layers * self.num_heads * self.num_positions * self.head_size
        return num_values * self.dtype.itemsize * (1 + self.has_prefixes)

    def max_new_tokens(self, num_prefix_tokens: int) -> int:
        """Return how many tokens fit after these; raise `SequenceTooLong` if none does."""
        limit = self.num_positions if self.has_prefixes else self.num_positions - 1
        if num_prefix_tokens > limit:
            raise SequenceTooLong(
                f"image and prompt have {num_prefix_tokens} tokens; at most {limit} are allowed"
            )
        return limit if self.has_prefixes else self.num_positions - num_prefix_tokens
