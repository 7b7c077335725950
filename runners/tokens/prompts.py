"""The text of a checkpoint: prompts to token ids, token ids to text, and a prompt's words as a
source of drafts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.tokens.constraints import Constraints, ConstraintState
from runners.tokens.tokenizer import PromptTokenizer, Segments, TextStream

# tokens; where a location, a segmentation code or free text follows, more are allowed
_FEW_ALLOWED = 100
_MAX_COPIED = 3  # tokens of free text


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
        spellings = [*enumerate(self.first_ids, 1), *enumerate(self.token_ids, 1)]
        if int(np.bitwise_count(allowed).sum()) <= _FEW_ALLOWED:
            starts = [each for each in spellings if allowed[each[1] >> 3] >> (each[1] & 7) & 1]
            runs = [[token_id, *self.token_ids[end:]] for end, token_id in starts]
        else:
            ends = [end for end, token_id in spellings if written[-1:] == [token_id]]
            runs = [[*self.token_ids[end : end + _MAX_COPIED]] for end in ends]
        best = min(filter(None, runs), key=lambda run: run[0] in written, default=[])
        return best[: state.validate_tokens(best)]


@dataclass(frozen=True, slots=True)
class CheckpointText:
    """The tokenizer of a checkpoint, its grammar compiler, and the frame around its prompts."""

    tokenizer: PromptTokenizer
    constraints: Constraints
    pad_token_id: int
    start_ids: tuple[int, ...]  # before a prompt
    end_ids: tuple[int, ...]  # after it
    labels_start_bare: bool  # a label starts without the space before a word

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the token ids of a prompt, with those that the family adds around it."""
        return (*self.start_ids, *self.tokenizer.encode(segments), *self.end_ids)

    def prompt_words(self, prompt_ids: Sequence[int]) -> PromptWords:
        """Return the tokens of a prompt, without its frame, as a source of drafts."""
        words = prompt_ids[len(self.start_ids) : len(prompt_ids) - len(self.end_ids)]
        if not self.labels_start_bare:
            return PromptWords(words, words)
        return PromptWords(words, [self.tokenizer.bare_id(token_id) for token_id in words])

    def text_stream(self) -> TextStream:
        return self.tokenizer.text_stream()
