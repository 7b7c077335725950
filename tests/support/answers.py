"""Answers as a decoder would return them, for tests of parsers."""

import re
from collections.abc import Callable

from tasks.parsing import GeneratedText

_TOKEN = re.compile(r"<[^<>\s]*>|\s?[^<>\s]+|.", re.DOTALL)


def generated(text: str, logprob_of: Callable[[str], float] = lambda _: -0.5) -> GeneratedText:
    """Return `text` as tokens, one for each control token and each word, with logprobs."""
    tokens = list(_TOKEN.finditer(text))
    return GeneratedText(
        text,
        tuple(t.end() for t in tokens),
        tuple(logprob_of(t.group().strip()) for t in tokens),
        "stop",
    )
