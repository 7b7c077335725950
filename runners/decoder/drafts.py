"""Drafts: tokens that an answer is likely to continue with, read in the same pass as its last
token.

A pass of the model over a few tokens takes little longer than over one. A token that the rules
force, and words of the prompt where the grammar asks for them, are therefore read before the model
has chosen them. Each is kept only if it is the token that the model chooses after those before it:
answers are the same as without drafts. Knows no family. Source: greedy speculative decoding
(Leviathan et al., arXiv 2211.17192) with drafts from the prompt
(github.com/apoorvumang/prompt-lookup-decoding). Shapes: B slots, T tokens of a slot in a pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.decoder.kv_cache import SlotLengths
from runners.tokens.constraints import ConstraintState

# tokens; where a location, a segmentation code or free text follows, more are allowed
_FEW_ALLOWED = 100
_MAX_COPIED = 3  # tokens of free text
# tokens that take as long as a pass without any; source: python -m laboratory.bench.steps
_PASS_COST = 4
# in use: with more, drafts of the same length at the same time are too rare to look for
MAX_SLOTS = 8


@dataclass(frozen=True, slots=True)
class PromptWords:
    """The tokens of a prompt, and each as an answer spells it where a label starts."""

    token_ids: Sequence[int]
    first_ids: Sequence[int]

    def continuation(
        self, state: ConstraintState, allowed: NDArray[np.uint8], written: Sequence[int]
    ) -> list[int]:
        """Return the words of the prompt that an answer of `written` is likely to continue with.

        Where `state` allows few tokens (`allowed`, a bit each), as in the labels asked for, the
        words start with one of them; elsewhere they follow the last token. Words that are not
        written yet are preferred.
        """
        spellings = [each for ids in (self.first_ids, self.token_ids) for each in enumerate(ids, 1)]
        if int(np.bitwise_count(allowed).sum()) <= _FEW_ALLOWED:
            starts = [each for each in spellings if allowed[each[1] >> 3] >> (each[1] & 7) & 1]
            runs = [[token_id, *self.token_ids[end:]] for end, token_id in starts]
        else:
            ends = [end for end, token_id in spellings if written[-1:] == [token_id]]
            runs = [
                [*self.token_ids[end : end + _MAX_COPIED]]
                for end in ends
                if end < len(self.token_ids)
            ]
        best = min(runs, key=lambda run: run[0] in written, default=[])
        return best[: state.validate_tokens(best)]


@dataclass(frozen=True, slots=True)
class TokenPlaces:
    """The tokens of a pass, on its device, and where their keys and values are stored."""

    token_ids: Tensor  # (B, T)
    slots: slice
    positions: Tensor  # (B, T) in the slots
    length: int  # of the longest slot, these tokens included

    def rows(self) -> Tensor:
        """Return the slots (B, 1), on the device."""
        return torch.arange(self.slots.start, self.slots.stop, device=self.positions.device)[
            :, None
        ]


@dataclass(frozen=True, slots=True)
class DraftedPass:
    """The certain token and the draft of each of consecutive slots, as many of its tokens as pay.

    Rows are padded with their last token, which is stored again at its own position.
    """

    first_slot: int
    certain: Sequence[int]
    drafts: Sequence[Sequence[int]]

    @property
    def slots(self) -> range:
        return range(self.first_slot, self.first_slot + len(self.drafts))

    def places(self, lengths: SlotLengths) -> TokenPlaces:
        """Return the places of the tokens after those that the slots hold, which `lengths`
        counts.
        """
        width = width_of(self.drafts)
        own = [
            [token_id, *draft] for token_id, draft in zip(self.certain, self.drafts, strict=True)
        ]
        token_ids = [[*tokens, *tokens[-1:] * (width - len(tokens))] for tokens in own]
        offsets = [[min(index, len(tokens) - 1) for index in range(width)] for tokens in own]
        ids_and_offsets = torch.tensor([token_ids, offsets], device=lengths.on_device.device)
        slots = slice(self.slots.start, self.slots.stop)
        positions = lengths.on_device[slots, None] + ids_and_offsets[1]
        length = max(
            length + len(tokens) for length, tokens in zip(lengths.of(self.slots), own, strict=True)
        )
        return TokenPlaces(ids_and_offsets[0], slots, positions, length)


def width_of(drafts: Iterable[Sequence[int]]) -> int:
    """Return T, the number of tokens of each slot in a pass over `drafts`."""
    return 1 + max(map(len, drafts))


def rows_of(drafts: Sequence[Sequence[int]]) -> list[range]:
    """Return the rows of each slot among the B * T of a pass over `drafts`."""
    starts = range(0, len(drafts) * width_of(drafts), width_of(drafts))
    return [
        range(start, start + 1 + len(draft)) for start, draft in zip(starts, drafts, strict=True)
    ]


def paying(drafts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Return the drafts, cut to the length at which a pass over all slots reads most tokens for its
    time.

    It reads as many tokens of each slot as of the one with the longest draft; all drafts are taken
    to be right.
    """

    def tokens_by_cost(length: int) -> float:
        num_tokens = sum(1 + min(len(draft), length) for draft in drafts)
        return num_tokens / (_PASS_COST + len(drafts) * (1 + length))

    best = max(range(1 + max(map(len, drafts))), key=tokens_by_cost)
    return [draft[:best] for draft in drafts]
