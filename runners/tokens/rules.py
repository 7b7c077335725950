"""Generation rules of a generation_config.json, with transformers' names and semantics."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from wire.artifacts.manifest import GENERATION_CONFIG_FILE


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
