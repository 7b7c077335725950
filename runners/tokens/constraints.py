"""Constrained decoding: token masks that keep an answer within a grammar, computed by llguidance.

Grammars are written in llguidance's variant of Lark (github.com/guidance-ai/llguidance,
docs/syntax.md). They may use the rules `location` and `segmentation`, which match one such token of
the checkpoint, and control tokens by their text (`<sep>`). Other text is UTF-8 and matched byte by
byte, however it is tokenized. Knows no tasks. Shapes: R rows, V vocabulary.
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
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from runners.errors import SequenceError

ConstraintState = LLMatcher  # immutable by convention: the state after a token is a copy

_TOKEN_RULES = {"location": re.compile(r"<loc_?\d+>"), "segmentation": re.compile(r"<seg\d{3}>")}
# llguidance's default allows only one tokenization of a text that the grammar forces.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_MAX_COMPILED = 256  # grammars


class Constraint:
    """A compiled grammar."""

    def __init__(self, start: ConstraintState, eos_token_ids: frozenset[int]) -> None:
        self._start = start
        self._eos_token_ids = eos_token_ids

    def start(self) -> ConstraintState:
        return self._start

    def after(self, state: ConstraintState, token_id: int) -> ConstraintState:
        """Return the state after `token_id`; raise `SequenceError` if `state` does not allow it."""
        if token_id in self._eos_token_ids:
            return state
        following = state.deep_copy()
        if not following.consume_token(token_id):
            message = f"the grammar failed at token {token_id}: {following.get_error()}"
            raise SequenceError("internal", message)
        return following

    def allowed(self, state: ConstraintState) -> NDArray[np.uint8]:
        """Return the tokens that `state` allows, a bit each."""
        return np.frombuffer(state.compute_bitmask(), np.uint8)


def token_bounds(allowed: Tensor, num_tokens: int) -> Tensor:
    """Return upper bounds (R, V) of log-probabilities: infinity where `allowed` (R, bytes) has a
    set bit, else -inf. Looked-up bounds are faster than `torch.where`, and an eighth of the bytes.
    """
    bounds = functional.embedding(allowed.int(), _bounds_by_byte(allowed.device))  # (R, bytes, 8)
    return bounds.flatten(1)[:, :num_tokens]


@lru_cache
def _bounds_by_byte(device: torch.device) -> Tensor:
    """Return the bounds (256, 8) of eight tokens, by their byte of a bitmask."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.where(torch.from_numpy(bits).bool(), math.inf, -math.inf).to(device)


class Constraints:
    """The grammar compiler of one checkpoint; `get(grammar)` caches, and raises `SequenceError`.

    `tokenizer` holds the parsed values of a `tokenizer.json`.
    """

    def __init__(self, tokenizer: Mapping[str, Any], eos_token_ids: Iterable[int]) -> None:
        self._eos_token_ids = frozenset(eos_token_ids)
        # Merges are only used to tokenize text; loading without them takes less time and memory.
        vocabulary_only = {**tokenizer, "model": {**tokenizer["model"], "merges": []}}
        added_ids = [token["id"] for token in tokenizer["added_tokens"]]
        last_id = max(*tokenizer["model"]["vocab"].values(), *added_ids)
        # An end token may be a padding row of the embeddings, which no text has: a model that never
        # ends.
        known_eos = sorted(token_id for token_id in self._eos_token_ids if token_id <= last_id)
        self._tokenizer = LLTokenizer(json.dumps(vocabulary_only), eos_token=known_eos or None)
        num_tokens = self._tokenizer.vocab_size
        if last_id >= num_tokens:
            raise ValueError(f"tokenizer.json has token id {last_id}, not below {num_tokens}")
        self._token_rules = ""  # one for each class of tokens that the checkpoint has
        for name, pattern in _TOKEN_RULES.items():
            added = tokenizer["added_tokens"]
            ids = [str(token["id"]) for token in added if pattern.fullmatch(token["content"])]
            if ids:
                self._token_rules += f"{name}: <[{','.join(ids)}]>\n"
        self.get = lru_cache(_MAX_COMPILED)(self._compile)

    @classmethod
    def load(cls, tokenizer_file: Path, eos_token_ids: Iterable[int]) -> Self:
        return cls(json.loads(tokenizer_file.read_text(encoding="utf-8")), eos_token_ids)

    def _compile(self, grammar: str) -> Constraint:
        rules = f"{_OPTIONS}{grammar}\n{self._token_rules}"
        matcher = LLMatcher(self._tokenizer, rules, log_level=0)
        if matcher.is_error():
            raise SequenceError("internal", matcher.get_error())
        return Constraint(matcher, self._eos_token_ids)
