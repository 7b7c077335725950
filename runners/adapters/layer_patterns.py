"""Patterns of layer names in PEFT's `rank_pattern` and `alpha_pattern`, matched in linear time.

A pattern is a regular expression that its adapter brings along; Python's `re` can take for ever on
one, such as `(a+)+x`. RE2 never backtracks. Accepted is the syntax that both read alike, so that
the values are those of PEFT. Source: peft 0.21, utils/other.py (`get_pattern_key`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import re2

from wire.artifacts.adapter_folder import AdapterError

MAX_PATTERNS = 1_000
MAX_PATTERN_CHARS = 500  # one pattern
# All patterns of one key: one for each layer of the largest models takes 30,000.
MAX_ALL_CHARS = 65_536

_ALLOWED = "letters, digits, _ - . ^ $ | * + ?, groups ( ) and (?: ), sets [ ], and \\. \\- \\d \\w"
_READ_ALIKE = re.compile(
    r"(?:[\w.^$|)*+?-]|\\[.dw-]|\((?:\?:|(?!\?))|\[\^?(?:[\w.-]|\\[.dw-])+\])*", re.ASCII
)
_MAX_MEMORY_BYTES = 1 << 18  # one compiled pattern


@dataclass(frozen=True, slots=True)
class LayerPatterns:
    """The values of layers by patterns of their names, in the order of the file."""

    compiled: tuple[tuple[Any, float], ...]

    @classmethod
    def compile(cls, key: str, values: Mapping[str, float]) -> "LayerPatterns":
        """Compile the patterns of a key; raise `AdapterError` for one that is not allowed."""
        if len(values) > MAX_PATTERNS or sum(map(len, values)) > MAX_ALL_CHARS:
            raise AdapterError(
                f"{key} has {len(values)} patterns of {sum(map(len, values))} characters; allowed"
                f" are {MAX_PATTERNS} patterns of {MAX_ALL_CHARS} characters in all"
            )
        return cls(tuple((_compiled(key, pattern), value) for pattern, value in values.items()))

    def value_of(self, layer: str, default: float) -> float:
        """Return the value of the first pattern that matches a layer's name or its dotted end."""
        return next((value for pattern, value in self.compiled if pattern.match(layer)), default)


def _compiled(key: str, pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY_BYTES
    try:
        if len(pattern) <= MAX_PATTERN_CHARS and _READ_ALIKE.fullmatch(pattern):
            return re2.compile(rf"(.*\.)?({pattern})$", options)
    except re2.error:
        pass  # such as a parenthesis that is not closed
    raise AdapterError(
        f"{key} has the pattern {pattern[:MAX_PATTERN_CHARS]!r}, which is not supported; allowed is"
        f" a regular expression of at most {MAX_PATTERN_CHARS} characters with {_ALLOWED}"
    )
