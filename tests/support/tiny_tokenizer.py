from collections.abc import Mapping
from typing import Any


def tiny_tokenizer(text: Mapping[int, str], control: Mapping[int, str]) -> dict[str, Any]:
    """Return the values of a byte-level `tokenizer.json`, as BART's, with these tokens by id and no
    merges.
    """
    flags = {
        "special": True,
        "normalized": False,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
    }
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": content, **flags} for token_id, content in control.items()
        ],
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "vocab": {content: i for i, content in {**text, **control}.items()},
            "merges": [],
        },
    }
