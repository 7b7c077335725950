"""A checkpoint's vocabulary as patterns see it: classes of tokens, and the bytes that each token writes.

Source of the two ways to write bytes: tokenizers, `ByteLevel` (BART: each byte has a printable character of its own)
and `ByteFallback` with `▁` for a space (Gemma).
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

from runners.transport.patterns import LOCATION, SEGMENTATION, TEXT

_CONTROL_CLASSES = {LOCATION: re.compile(r"<loc_?\d+>"), SEGMENTATION: re.compile(r"<seg\d{3}>")}
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_GEMMA_SPACE = "▁"
_FIRST_MOVED_CHARACTER = 256


class Vocabulary:
    """Tokens by class, and by the bytes that they write."""

    def __init__(self, text_tokens: dict[int, bytes], control_tokens: dict[int, str]) -> None:
        self._bytes = text_tokens
        self._classes: dict[str, frozenset[int]] = {TEXT: frozenset(text_tokens)}
        for name, pattern in _CONTROL_CLASSES.items():
            self._classes[name] = frozenset(i for i, text in control_tokens.items() if pattern.fullmatch(text))
        self._control = {text: frozenset({token_id}) for token_id, text in control_tokens.items()}
        self._ids_by_bytes: dict[bytes, list[int]] = defaultdict(list)
        for token_id, written in text_tokens.items():
            self._ids_by_bytes[written].append(token_id)
        self._max_bytes = max(map(len, text_tokens.values()), default=0)

    @classmethod
    def load(cls, tokenizer_file: Path) -> Self:
        """Read a `tokenizer.json`."""
        return cls.of(json.loads(tokenizer_file.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, definition: dict[str, Any]) -> Self:
        """Take the vocabulary from the values of a `tokenizer.json`."""
        control = {token["id"]: token["content"] for token in definition["added_tokens"]}
        is_byte_level = '"ByteLevel"' in json.dumps(definition["decoder"])
        to_bytes = _byte_level_bytes if is_byte_level else _gemma_bytes
        vocabulary: dict[str, int] = definition["model"]["vocab"]
        text = {token_id: to_bytes(token) for token, token_id in vocabulary.items() if token_id not in control}
        return cls(text, control)

    def ids_of(self, token_class: str) -> frozenset[int]:
        """Return the tokens of a class, or the one control token of that text; none where the vocabulary has none."""
        return self._classes.get(token_class) or self._control.get(token_class, frozenset())

    def ids_that_begin(self, text: bytes) -> list[int]:
        """Return the text tokens that `text` begins with."""
        lengths = range(1, min(len(text), self._max_bytes) + 1)
        return [token_id for length in lengths for token_id in self._ids_by_bytes.get(text[:length], ())]

    def bytes_of(self, token_id: int) -> bytes:
        """Return what a text token writes, nothing for a control token."""
        return self._bytes.get(token_id, b"")


def _byte_level_bytes(token: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in token if character in _BYTE_OF)


def _gemma_bytes(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_GEMMA_SPACE, " ").encode()


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character stands for; source: GPT-2, encoder.py (`bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(_FIRST_MOVED_CHARACTER + index): byte for index, byte in enumerate(moved)
    }


_BYTE_OF = _byte_characters()
