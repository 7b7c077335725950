"""Constrained decoding: which tokens can come next in an answer that follows a grammar, computed by llguidance.

A grammar is a text in llguidance's variant of Lark (github.com/guidance-ai/llguidance, docs/syntax.md). It may use the
rules `location` and `segmentation`, one such token of the checkpoint, and control tokens by their text (`<sep>`). Other
text is matched byte by byte, whatever tokens spell it, and is UTF-8. Nothing here knows a task. Shapes: V vocabulary.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from runners.decoder.errors import GrammarError

ConstraintState = LLMatcher  # immutable by convention: the state after a token is a copy

_TOKEN_RULES = {"location": re.compile(r"<loc_?\d+>"), "segmentation": re.compile(r"<seg\d{3}>")}
# By default, where only one text can follow, llguidance allows only one of the ways to tokenize it.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_MAX_KEPT = 256


class Constraint:
    """The answers that follow one grammar."""

    def __init__(self, start: ConstraintState, eos_token_ids: frozenset[int]) -> None:
        self._start = start
        self._eos_token_ids = eos_token_ids

    def start(self) -> ConstraintState:
        """Return the state before the first token."""
        return self._start

    def after(self, state: ConstraintState, token_id: int) -> ConstraintState:
        """Return the state after `token_id`, which must be allowed in `state`; raise `GrammarError`."""
        if token_id in self._eos_token_ids:
            return state
        following = state.deep_copy()
        if not following.consume_token(token_id):
            raise GrammarError(f"the grammar failed at token {token_id}: {following.get_error()}")
        return following

    def masked(self, state: ConstraintState, logprobs: Tensor) -> Tensor:
        """Return `logprobs` (V,) with every token that cannot come next at -inf."""
        packed = np.frombuffer(state.compute_bitmask(), np.uint8)
        bits = np.unpackbits(packed, bitorder="little", count=len(logprobs))  # padded where V is above the tokenizer's
        return torch.where(torch.from_numpy(bits.view(np.bool_)).to(logprobs.device), logprobs, -math.inf)


class Constraints:
    """The constraints of one checkpoint; the grammars used most recently stay compiled."""

    def __init__(self, tokenizer: Mapping[str, Any], eos_token_ids: Iterable[int]) -> None:
        """Take the values of a `tokenizer.json`."""
        self._eos_token_ids = frozenset(eos_token_ids)
        # Merges only matter where text is tokenized; without them loading takes less time and memory.
        vocabulary_only = {**tokenizer, "model": {**tokenizer["model"], "merges": []}}
        self._tokenizer = LLTokenizer(json.dumps(vocabulary_only), eos_token=sorted(self._eos_token_ids))
        last_id = max(*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"]))
        self.num_tokens: int = self._tokenizer.vocab_size
        if last_id >= self.num_tokens:
            raise ValueError(f"tokenizer.json has ids up to {last_id} for {self.num_tokens} tokens")
        self._token_rules = "".join(_token_rules(tokenizer["added_tokens"]))
        self.get = lru_cache(_MAX_KEPT)(self._compile)

    @classmethod
    def load(cls, tokenizer_file: Path, eos_token_ids: Iterable[int]) -> Self:
        """Read a `tokenizer.json`."""
        return cls(json.loads(tokenizer_file.read_text(encoding="utf-8")), eos_token_ids)

    def _compile(self, grammar: str) -> Constraint:
        """Return the constraint of a grammar; raise `GrammarError`."""
        matcher = LLMatcher(self._tokenizer, f"{_OPTIONS}{grammar}\n{self._token_rules}", log_level=0)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return Constraint(matcher, self._eos_token_ids)


def _token_rules(added_tokens: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the rule of each class of tokens that the checkpoint has."""
    for name, pattern in _TOKEN_RULES.items():
        if ids := [str(token["id"]) for token in added_tokens if pattern.fullmatch(token["content"])]:
            yield f"{name}: <[{','.join(ids)}]>\n"
