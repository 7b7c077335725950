"""Tokenization of prompts and detokenization of answers, with the checkpoint's tokenizer.json.

A prompt is a sequence of segments. Control tokens (`<loc_5>`, `<image>`, `</s>`) are recognised in
control segments only; all other text, such as a user's, is tokenized by a second tokenizer that has
none.
"""

import json
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_SPACE = "Ġ"  # space of byte-level vocabularies, such as BART's
Segments = Sequence[tuple[str, bool]]  # (text, is_control)


class TextStream:
    """Incremental detokenizer of one answer; a token that completes no character adds no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token_id: int) -> str:
        """Return the text that the next token adds, control tokens included."""
        return self._stream.step(self._tokenizer, token_id) or ""


class PromptTokenizer:
    """The checkpoint's tokenizer, with and without its control tokens."""

    def __init__(self, tokenizer: Tokenizer, plain_tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._plain_tokenizer = plain_tokenizer
        self._control_ids = frozenset(tokenizer.get_added_tokens_decoder())
        self.bare_id = cache(self._bare_id)

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
            found = self._tokenizer.encode(text, add_special_tokens=False).ids if is_control else ()
            return not self._control_ids.isdisjoint(found)

        for is_control, group in groupby(segments, key=has_control):
            tokenizer = self._tokenizer if is_control else self._plain_tokenizer
            text = "".join(text for text, _ in group)
            ids.extend(tokenizer.encode(text, add_special_tokens=False).ids)
        return ids

    def has_control_token(self, text: str) -> bool:
        """Return True if `text` is one control token of the checkpoint."""
        return self._tokenizer.token_to_id(text) in self._control_ids

    def _bare_id(self, token_id: int) -> int:
        """Return the token with the text of `token_id` without its first space; `token_id` itself
        if there is none.
        """
        text = self._tokenizer.id_to_token(token_id) or ""
        bare = self._tokenizer.token_to_id(text.removeprefix(_SPACE))
        return token_id if bare is None else bare

    def text_stream(self) -> TextStream:
        return TextStream(self._tokenizer)
