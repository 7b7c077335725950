"""The vocabulary of each family, trained on the wording of prompts and answers about scenes.

Florence-2: byte-level BPE with BART's special tokens and 1000 locations. PaliGemma: BPE as in Gemma
(a space is `▁`, unknown characters fall back to bytes) with 1024 locations and 128 segmentation
tokens. A scene's word consists of random capitals or digits; no merges are learnt from it, so that
it is written character by character.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from export.scenes import sample_scene
from laboratory.questions import (
    DetectionsTruth,
    Question,
    TextTruth,
    joined,
    question_prompts,
    questions,
)
from runners.tokens.text import PromptTokenizer
from tasks.catalog import CatalogEntry
from tasks.florence2.locations import NUM_BINS as FLORENCE2_BINS
from tasks.florence2.locations import location_token as florence2_location
from tasks.paligemma.locations import NUM_BINS as PALIGEMMA_BINS
from tasks.paligemma.locations import location_token as paligemma_location

NUM_SEGMENTATION_TOKENS = 128
IMAGE_TOKEN = "<image>"
_NUM_CORPUS_SCENES = 2000
_MIN_FREQUENCY = 10
_ROWS_MULTIPLE = 8
_MAX_MERGED = 600  # byte tokens and merges; the corpus has fewer
_FLORENCE2_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_FLORENCE2_MARKS = ("<sep>", "<poly>", "</poly>", "<od>", "</od>", "<ground>", "<obj>")
_PALIGEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def florence2_tokenizer(entry: CatalogEntry) -> Tokenizer:
    """Return byte-level BPE with Florence-2's special tokens, trained on the prompts of `entry`."""
    split: Any = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    locations = [florence2_location(index) for index in range(FLORENCE2_BINS)]
    return _with_added_tokens(
        {
            "pre_tokenizer": json.loads(split.__getstate__()),
            "normalizer": None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
        },
        _merges(_corpus(entry), None, split, alphabet),
        [*_FLORENCE2_SPECIAL, *alphabet],
        special=(*_FLORENCE2_SPECIAL, IMAGE_TOKEN),
        added=[*_FLORENCE2_SPECIAL, *locations, *_FLORENCE2_MARKS, IMAGE_TOKEN],
        byte_fallback=False,
    )


def paligemma_tokenizer(entry: CatalogEntry) -> Tokenizer:
    """Return BPE as in Gemma with PaliGemma's special tokens, trained on the prompts of `entry`."""
    normalizer: Any = normalizers.Replace(" ", "▁")
    split: Any = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split(Regex("[,.:?]"), "isolated"),
        ]
    )
    alphabet = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    locations = [paligemma_location(index) for index in range(PALIGEMMA_BINS)]
    segments = [f"<seg{index:03d}>" for index in range(NUM_SEGMENTATION_TOKENS)]
    return _with_added_tokens(
        {
            "pre_tokenizer": json.loads(split.__getstate__()),
            "normalizer": json.loads(normalizer.__getstate__()),
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
        },
        _merges(_corpus(entry), normalizer, split, alphabet),
        [*_PALIGEMMA_SPECIAL, *fallback, *alphabet],
        special=(*_PALIGEMMA_SPECIAL, IMAGE_TOKEN),
        added=[*_PALIGEMMA_SPECIAL, *locations, *segments, IMAGE_TOKEN],
        byte_fallback=True,
    )


def _corpus(entry: CatalogEntry) -> Iterator[str]:
    """Yield prompts, labels and texts of scenes without a word."""
    # The committed tokenizers were trained with several names per prompt.
    entry = replace(entry, one_name_per_prompt=False)
    yield from [
        "caption en",
        "describe en",
        "ocr",
        "shapes. The text says .",
        "star with text",
        "text",
    ] * _MIN_FREQUENCY
    for seed in range(_NUM_CORPUS_SCENES):
        for question in questions(sample_scene(seed, has_word=False)):
            # The tokenizer of florence-2-mini was trained on captions that enumerate phrases.
            phrases = [str(phrase) for phrase in question.parameters.get("phrases", ())]
            if phrases and entry.family == "florence2":
                question = replace(question, parameters={"caption": joined(phrases)})
            yield from _wording(entry, question)


def _wording(entry: CatalogEntry, question: Question) -> Iterator[str]:
    """Yield the prompts of a question, and its answer without locations."""
    for prompt in question_prompts(entry, question):
        yield "".join(segment.text for segment in prompt.segments if not segment.is_control)
    match question.truth:
        case TextTruth(text):
            yield text
        case DetectionsTruth(boxes):
            yield from (box.label for box in boxes)


def _merges(
    corpus: Iterator[str],
    normalizer: Any,
    split: Any,
    alphabet: Sequence[str],
) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_MERGED,
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]


def _with_added_tokens(
    definition: dict[str, Any],
    merges: Sequence[tuple[str, str]],
    pieces: Sequence[str],
    *,
    special: Sequence[str],
    added: Sequence[str],
    byte_fallback: bool,
) -> Tokenizer:
    """Return a tokenizer with ids in order: `pieces`, merged tokens, new added tokens."""
    tokens = dict.fromkeys([*pieces, *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": list(merges),
        "byte_fallback": byte_fallback,
    }
    new = [token for token in added if token not in vocabulary]
    new_ids = {token: len(vocabulary) + i for i, token in enumerate(new)}
    ids = vocabulary | new_ids
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    rows = [
        {"id": ids[token], "content": token, "special": token in special} | flags
        for token in sorted(added, key=lambda token: ids[token])
    ]
    parts = {"version": "1.0", "truncation": None, "padding": None, "post_processor": None}
    return Tokenizer.from_str(
        json.dumps(parts | definition | {"model": model, "added_tokens": rows})
    )


def prompt_tokenizer(tokenizer: Tokenizer) -> PromptTokenizer:
    """Return the service's prompt tokenizer over this vocabulary."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.save(str(file))
        return PromptTokenizer.load(file)


def padded_size(tokenizer: Tokenizer) -> int:
    """Return the number of embedding rows: the vocabulary rounded up to a multiple of 8."""
    return -(-tokenizer.get_vocab_size() // _ROWS_MULTIPLE) * _ROWS_MULTIPLE


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token; raise ValueError if the vocabulary lacks it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the vocabulary lacks {token}")
    return found
