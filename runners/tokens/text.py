"""The text and the tokens of a checkpoint: its tokenizer, generation rules and grammars.

    PromptTokenizer   prompts to token ids, token ids to text. Control tokens (`<loc_5>`, `<image>`,
                      `</s>`) are recognised in control segments only; all other text, such as a
                      user's, is tokenized by a second tokenizer that has none
    GenerationRules   those of generation_config.json, with transformers' names and semantics
    Constraints       token masks that keep an answer within a grammar

Grammars are in llguidance's variant of Lark (github.com/guidance-ai/llguidance, docs/syntax.md).
They may use the rules `location` and `segmentation`, which match one such token, and control tokens
by their text (`<sep>`). Other text is matched byte by byte, however it is tokenized.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import (
    allocate_token_bitmask,
    fill_next_token_bitmask,
    fill_next_token_bitmask_par,
)
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from runners.errors import SequenceError
from wire.artifacts.manifest import GENERATION_CONFIG_FILE
from wire.host import num_cores


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """The rules of one checkpoint."""

    eos_token_ids: frozenset[int]
    max_new_tokens: int | None = None
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    early_stopping: bool | str = False  # True, False or "never", see transformers' GenerationConfig
    length_penalty: float = 1.0

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls.of(json.loads((folder / GENERATION_CONFIG_FILE).read_text(encoding="utf-8")))

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        eos = config["eos_token_id"]
        names = [rule.name for rule in fields(cls) if config.get(rule.name) is not None]
        eos_token_ids = frozenset(eos if isinstance(eos, list) else [eos])
        return cls(eos_token_ids, **{name: config[name] for name in names})

    def forced_token(self, position: int, max_new_tokens: int) -> int | None:
        """Return the token that transformers' ForcedBOS and ForcedEOS processors force, or None."""
        # Transformers applies EOS last: an answer of one token is the end token.
        if position == max_new_tokens - 1 and self.forced_eos_token_id is not None:
            return self.forced_eos_token_id
        return self.forced_bos_token_id if position == 0 else None

    def banned_tokens(self, token_ids: Sequence[int]) -> list[int]:
        """Return the tokens that transformers' NoRepeatNGramLogitsProcessor bans after these."""
        start = [] if self.decoder_start_token_id is None else [self.decoder_start_token_id]
        written = [*start, *token_ids]
        size = self.no_repeat_ngram_size
        if not 0 < size <= len(written):
            return []
        tail = written[len(written) - size + 1 :]
        starts = range(len(written) - size + 1)
        return [written[i + size - 1] for i in starts if written[i : i + size - 1] == tail]


_TOKEN_RULES = {"location": re.compile(r"<loc_?\d+>"), "segmentation": re.compile(r"<seg\d{3}>")}
# llguidance's default allows only one tokenization of a text that the grammar forces.
_OPTIONS = '%llguidance {"no_forcing": true}\n'
_MAX_COMPILED = 64  # grammars, 180 kB each; another takes 1.2 ms
_FEW_STATES = 8  # their masks take less time than to wake a thread
_MAX_MASK_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Constraint:
    """A compiled grammar after the tokens of an answer, none at first."""

    matcher: LLMatcher
    eos_token_ids: frozenset[int]

    def after(self, token_id: int) -> "Constraint":
        """Return it after one more token; raise `SequenceError` if that is not allowed."""
        following = Constraint(self.matcher.deep_copy(), self.eos_token_ids)
        following.consume(token_id)
        return following

    def consume(self, token_id: int) -> None:
        """Change one that no other answer has: a copy takes as long as its answer."""
        if token_id not in self.eos_token_ids and not self.matcher.consume_token(token_id):
            message = f"the grammar failed at token {token_id}: {self.matcher.get_error()}"
            raise SequenceError("internal", message)

    def allowed(self) -> NDArray[np.uint8]:
        """Return the allowed next tokens, a bit each."""
        return np.frombuffer(self.matcher.compute_bitmask(), np.uint8)


class TokenMasks:
    """The masks of the rows of a pass, a bit for each token: added one by one, computed together.

    Valid until `clear`. A constraint has one row, however often it is added.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._bits = allocate_token_bitmask(0, num_tokens)
        self._masks: list[NDArray[np.uint8]] = []  # views of the rows
        self._states: list[tuple[LLMatcher, int]] = []  # a state and its row
        self._rows: dict[int, int] = {}  # rows by identity of their state

    def clear(self, num_rows: int) -> None:
        """Remove all; `num_rows` may be added."""
        self._states.clear()
        self._rows.clear()
        if num_rows > len(self._bits):
            self._bits = allocate_token_bitmask(num_rows, self._num_tokens)
            self._masks = list(self._bits.view(np.uint8))

    def add(self, constraint: Constraint) -> NDArray[np.uint8]:
        """Return the mask of `constraint`, which `compute` fills."""
        row = self._rows.setdefault(id(constraint.matcher), len(self._states))
        if row == len(self._states):
            self._states.append((constraint.matcher, row))
        return self._masks[row]

    def compute(self) -> None:
        if len(self._states) >= _FEW_STATES:
            fill_next_token_bitmask_par(_mask_threads(), self._states, self._bits)
            return
        for state, row in self._states:
            fill_next_token_bitmask(state, self._bits, row)


@cache
def _mask_threads() -> LLExecutor:
    return LLExecutor(min(_MAX_MASK_THREADS, num_cores()))


class Constraints:
    """The grammar compiler of a `tokenizer.json`; `get` caches, and raises `SequenceError`."""

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
        self.num_tokens = self._tokenizer.vocab_size
        if last_id >= self.num_tokens:
            raise ValueError(f"tokenizer.json has token id {last_id}, not below {self.num_tokens}")
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
        runs: list[tuple[Tokenizer, list[str]]] = []
        for text, is_control in segments:
            tokenizer = self._plain_tokenizer
            if is_control:
                # A control segment without a control token of this checkpoint is text like its
                # neighbours, with which it is tokenized: BPE depends on context.
                ids = self._tokenizer.encode(text, add_special_tokens=False).ids
                if not self._control_ids.isdisjoint(ids):
                    tokenizer = self._tokenizer
            if not runs or runs[-1][0] is not tokenizer:
                runs.append((tokenizer, []))
            runs[-1][1].append(text)
        token_ids: list[int] = []
        for tokenizer, texts in runs:
            token_ids += tokenizer.encode("".join(texts), add_special_tokens=False).ids
        return token_ids

    def has_control_token(self, text: str) -> bool:
        """Return True if `text` is one control token of the checkpoint."""
        return self._tokenizer.token_to_id(text) in self._control_ids

    def bare_ids(self) -> dict[int, int]:
        """Return, by the id of each token that starts with a space, the id of it without."""
        vocabulary = self._tokenizer.get_vocab()
        bare_ids: dict[int, int] = {}
        for text, token_id in vocabulary.items():
            if text.startswith(_SPACE) and text.removeprefix(_SPACE) in vocabulary:
                bare_ids[token_id] = vocabulary[text.removeprefix(_SPACE)]
        return bare_ids

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

    def continuation(self, constraint: Constraint, written: Sequence[int]) -> list[int]:
        """Return the words of the prompt that are likely to follow, those not `written` yet first.

        Where few tokens are allowed, as in labels, they start with one of them; elsewhere they
        follow the last token.
        """
        allowed = constraint.allowed()
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
        return best[: constraint.matcher.validate_tokens(best)]


@dataclass(frozen=True, slots=True)
class CheckpointText:
    """The tokenizer of a checkpoint, its grammar compiler, and the frame around its prompts."""

    tokenizer: PromptTokenizer
    constraints: Constraints
    pad_token_id: int
    start_ids: tuple[int, ...]  # before a prompt
    end_ids: tuple[int, ...]  # after it
    # ids by token id, without the space before a word, if labels start so; else empty
    bare_ids: Mapping[int, int]

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the token ids of a prompt, with those that the family adds around it."""
        return (*self.start_ids, *self.tokenizer.encode(segments), *self.end_ids)

    def prompt_words(self, prompt_ids: Sequence[int]) -> PromptWords:
        """Return the tokens of a prompt, without its frame, as a source of drafts."""
        words = prompt_ids[len(self.start_ids) : len(prompt_ids) - len(self.end_ids)]
        return PromptWords(words, [self.bare_ids.get(token_id, token_id) for token_id in words])
