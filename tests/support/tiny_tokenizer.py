import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE


def tiny_tokenizer(text: Mapping[int, str], control: Mapping[int, str]) -> dict[str, Any]:
    """Return a byte-level `tokenizer.json` as BART's, with these tokens and no merges."""
    vocabulary = {content: token_id for token_id, content in {**text, **control}.items()}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(control.values()))
    values: dict[str, Any] = json.loads(tokenizer.to_str())
    return values
