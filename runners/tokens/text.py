"""The text of a checkpoint: prompts to token ids, token ids to text, with its tokenizer.json.

A prompt is a sequence of segments. Control tokens (`<loc_5>`, `<image>`, `</s>`) are recognised in
control segments only; all other text, such as a user's, is tokenized by a second tokenizer that has
none. A prompt's words are also a source of drafts (runners/decoder/engines.py).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from runners.tokens.constraints import Constraints, ConstraintState

_SPACE = "Ġ"  # space of byte-level vocabularies, such as BART's
Segments = Sequence[tuple[str, bool]]  # (text, is_control)


class PromptTokenizer:
    """The checkpoint's tokenizer, with and without its control tokens."""

    def __init__(self, tokenizer: Tokenizer, plain_tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._plain_tokenizer = plain_tokenizer
        self._control_ids = frozenset(tokenizer.get_added_tokens_decoder())

    @classmethod
    def load(cls, tokenizer_file: Path) -> Self:
        definition = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        without = dict.fromkeys(("post_processor", "padding", "truncation"))
        plain = definition | without | {"added_tokens": []}
        return cls(Tokenizer.from_file(str(tokenizer_file)), Tokenizer.from_str(json.dumps(plain)))

    def encode(self, segments: Segments) -> list[int]:
        """Return the token ids of a prompt, without the tokens that a family adds around it."""
        ids: list[int] = []

        def has_control(segment: tuple[str, bool]) -> bool:
            # A control segment without a control token of this checkpoint is text like its
            # neighbours, with which it is tokenized: BPE depends on context.
            text, is_control = segment
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids if is_control else ()
            return not self._control_ids.isdisjoint(ids)

        for is_control, group in groupby(segments, key=has_control):
            tokenizer = self._tokenizer if is_control else self._plain_tokenizer
            text = "".join(text for text, _ in group)
            ids.extend(tokenizer.encode(text, add_special_tokens=False).ids)
        return ids

    def has_control_token(self, text: str) -> bool:
        """Return True if `text` is one control token of the checkpoint."""
        return self._tokenizer.token_to_id(text) in self._control_ids

    def bare_id(self, token_id: int) -> int:
        text = self._tokenizer.id_to_token(token_id) or ""
        bare = self._tokenizer.token_to_id(text.removeprefix(_SPACE))
        return token_id if bare is None else bare

    def text_stream(self) -> Callable[[int], str]:
        """Return a function that returns the text that the next token of one answer completes."""
        stream = DecodeStream(skip_special_tokens=False)
        return lambda token_id: stream.step(self._tokenizer, token_id) or ""


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
        """Return the words of the prompt that are likely to follow, those not `written` yet first.

        Where few tokens are `allowed` (a bit each), as in labels, they start with one of them;
        elsewhere they follow the last token.
        """
        spellings = [*enumerate(self.first_ids, 1), *enumerate(self.token_ids, 1)]
        runs: list[list[int]] = []
        if int(np.bitwise_count(allowed).sum()) <= _FEW_ALLOWED:
            for end, token_id in spellings:
                if allowed[token_id >> 3] >> (token_id & 7) & 1:
                    runs.append([token_id, *self.token_ids[end:]])
        else:
            for end, token_id in spellings:
                if written[-1:] == [token_id]:
                    runs.append([*self.token_ids[end : end + _MAX_COPIED]])
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
