"""`python -m export golden MODEL`: compares an exported model's answers with published ones, one
line for each answer and precision.

    ok        int8+int8 car.jpg '<CAPTION>': expected and got 'a green car parked in front of…'
    failure   int8+int8 car.jpg '<OD>': from character 7 expected '…53>', got '…54>'

The answers are those of models/golden.yaml: other software wrote them, with the released weights,
by the checkpoint's own rules. Each is asked at the default precision on this host's devices, and in
float32 on its CPU. A difference from an answer marked as weak is a warning. The exit status is 1
after a failure.

`python -m export golden --reach` needs no model. It prints a table of all published answers and
counts those that constrained decoding can write.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from export.checkpoints.bases import CATALOG_FILE, ROOT
from export.checkpoints.jobs import find_entry
from export.checks.answers import generated_text
from export.checks.golden_answers import (
    GOLDEN_FILE,
    GoldenAnswer,
    GoldenImage,
    answers_of,
    find_image,
    has_regions,
    read_golden,
)
from export.checks.parity import first_difference
from export.checks.reference import load_for_checks
from export.doctor import Finding, Verdict
from export.errors import ExportError, SourceError
from export.progress import silence_transformers
from export.resources import needs_of
from imaging.errors import ImageError
from imaging.files import read_image, resize
from runners.decoder.answers import to_request
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.encoder.session import VisionEncoder
from runners.errors import SequenceError
from runners.models.load import load_decoder
from runners.tokens.constraints import Constraints
from tasks.catalog import CatalogEntry, CatalogError, load_catalog, model_id_of, parse_entry
from tasks.errors import TaskError
from tasks.families import FAMILIES
from tasks.paligemma import MaskDecoder
from tasks.prompts import Prompt, PromptSegment
from tasks.table import TASKS, Family, TaskParameters, parse_parameters
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import (
    ENTRY_FILE,
    MASK_DECODER_FILE,
    ArtifactError,
    Device,
    Manifest,
    Precision,
    read_manifest,
    verify_files,
)
from wire.artifacts.model_store import artifact_folder
from wire.runner_messages import SequenceSpec

_SHOWN_CHARS = 60
_MAX_PROMPT_TOKENS = 1024
_NO_TIMEOUT_S = 1e9
_NO_PARAMETERS = TaskParameters()
# any vocabulary with the family's location tokens: text is constrained byte by byte
_VOCABULARIES: dict[Family, str] = {
    "florence2": "florence-2-mini",
    "paligemma": "paligemma-mini",
}
_SIZE_WH = (640, 480)  # of any image


@dataclass(frozen=True, slots=True)
class Parts:
    """A pair of precisions, each with its device."""

    encoder: Precision
    encoder_device: Device
    decoder: Precision
    decoder_device: Device

    def __str__(self) -> str:
        return f"{self.encoder}+{self.decoder}"


@dataclass(frozen=True, slots=True)
class Question:
    """A published prompt, as the service sends it; one that is not a task's is sent as it is."""

    prompt: Prompt
    task_id: str | None = None
    parameters: TaskParameters = _NO_PARAMETERS

    @classmethod
    def of(cls, entry: CatalogEntry, text: str, image_size_wh: tuple[int, int]) -> "Question":
        """Raise `TaskError` if the model offers no such prompt."""
        as_it_is = cls((PromptSegment(text),))
        asked = FAMILIES[entry.family].read_prompt(entry, text)
        if asked is None:
            return as_it_is
        values = dict(asked.values)
        if asked.region_shares is not None:
            sides = (*image_size_wh, *image_size_wh)
            shares = zip(asked.region_shares, sides, strict=True)
            values["region"] = [share * side for share, side in shares]
        parameters = parse_parameters(TASKS[asked.task_id], values)
        prompts = FAMILIES[entry.family].task_prompts(
            entry, asked.task_id, parameters, image_size_wh
        )
        return cls(prompts[0], asked.task_id, parameters) if len(prompts) == 1 else as_it_is

    def grammar(self, entry: CatalogEntry) -> str | None:
        """Return the grammar by which the service constrains the answer."""
        if self.task_id is None:
            return None
        return FAMILIES[entry.family].answer_grammar(entry, self.task_id, self.parameters)


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """The comparison of one exported model."""

    entry: CatalogEntry
    folder: Path
    manifest: Manifest
    mask_decoder: MaskDecoder | None
    answers: Sequence[GoldenAnswer]
    images: Mapping[str, Image.Image]

    @property
    def default_parts(self) -> Parts:
        """The default precisions on this host's devices."""
        on_encoder = encoder_device("auto")
        on_decoder = decoder_device("auto")
        precision = self.manifest.precision
        return Parts(
            precision[on_encoder]["encoder"],
            on_encoder,
            precision[on_decoder]["decoder"],
            on_decoder,
        )

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each answer, at the default precision and in float32."""
        float32 = Parts("float32", "cpu", "float32", "cpu")
        for parts in dict.fromkeys((self.default_parts, float32)):
            features = self.encode(parts)
            decoder = self.load_decoder(parts)
            for answer in self.answers:
                if answer.image not in features:
                    continue
                try:
                    finding = self.ask(decoder, answer, features[answer.image])
                except (SequenceError, TaskError) as error:
                    finding = Finding("failure", f"no answer: {error}")
                where = f"{parts} {answer.image} {answer.prompt!r}"
                yield Finding(finding.verdict, f"{where}: {finding.text}")
            del decoder, features  # before the next are loaded

    def encode(self, parts: Parts) -> dict[str, Tensor]:
        """Return the features (N, C) of each image."""
        encoder = VisionEncoder(self.folder, precision=parts.encoder, device=parts.encoder_device)
        encoder.load()
        features = {}
        for name, image in self.images.items():
            resized = resize(image, self.manifest.image_size_wh, self.manifest.resample)
            features[name] = encoder.encode(np.asarray(resized)[None])[0]
        return features

    def load_decoder(self, parts: Parts) -> Decoder:
        """Load the decoder; a large one in float32 runs layer by layer."""
        longest = max(answer.max_new_tokens for answer in self.answers)
        max_positions = self.manifest.num_image_tokens + _MAX_PROMPT_TOKENS + longest
        family = self.manifest.family
        if parts.decoder_device != "cpu":
            device = parts.decoder_device
            return load_decoder(self.folder, family, parts.decoder, device, max_positions)
        is_large = needs_of(self.entry, os.cpu_count() or 1).is_large
        return load_for_checks(self.folder, family, parts.decoder, is_large, max_positions)

    def ask(self, decoder: Decoder, answer: GoldenAnswer, features: Tensor) -> Finding:
        """Compare one answer; raise `SequenceError` or `TaskError` if there is none."""
        language = FAMILIES[self.manifest.family]
        size_wh = self.images[answer.image].size
        question = Question.of(self.entry, answer.prompt, size_wh)
        spec = SequenceSpec(
            segments=[(segment.text, segment.is_control) for segment in question.prompt],
            max_new_tokens=answer.max_new_tokens,
            grammar=question.grammar(self.entry),
            timeout_s=_NO_TIMEOUT_S,
        )
        (sequence,) = generate_all(decoder, [to_request(decoder, features, spec)])
        text = framed_text(decoder, sequence.token_ids)
        if (start := first_difference(text, answer.text)) is not None:
            differing = f"expected {shown(answer.text, start)}, got {shown(text, start)}"
            verdict: Verdict = "warning" if answer.weak else "failure"
            return Finding(verdict, f"from character {start + 1} {differing}")
        if question.task_id is not None and answer.regions is not None:
            result = language.parse_answer(
                self.entry,
                question.task_id,
                question.parameters,
                [generated_text(decoder, sequence)],
                size_wh,
                "polygon",
                self.mask_decoder,
            )
            if not has_regions(result, answer.regions):
                return Finding("failure", f"the text is equal, the regions differ: got {result}")
        return Finding("ok", f"expected and got {shown(text)}")


def framed_text(decoder: Decoder, token_ids: Sequence[int]) -> str:
    """Return an answer as it is published: without its first start token and its end tokens."""
    rules = decoder.rules
    kept = [token_id for token_id in token_ids if token_id not in rules.eos_token_ids]
    if kept[:1] == [rules.forced_bos_token_id]:
        del kept[0]
    stream = decoder.text.tokenizer.text_stream()
    return "".join(stream.push(token_id) for token_id in kept)


def shown(text: str, start: int = 0) -> str:
    """Return what a line shows of a text, from a character on."""
    cut = text[start : start + _SHOWN_CHARS]
    is_whole = start + _SHOWN_CHARS >= len(text)
    return repr(f"{'…' if start else ''}{cut}{'' if is_whole else '…'}")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer with the grammars that are compiled for it."""

    tokenizer: Tokenizer
    constraints: Constraints

    @classmethod
    def of_family(cls, family: Family) -> "Vocabulary":
        file = ROOT / "models" / _VOCABULARIES[family] / "tokenizer.json"
        return cls(Tokenizer.from_file(str(file)), Constraints.load(file, ()))

    def allows(self, grammar: str, text: str) -> bool:
        """Return True if a decoder that follows the grammar can write the text and end."""
        state = self.constraints.get(grammar).start().deep_copy()
        token_ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return bool(state.try_consume_tokens(token_ids) == len(token_ids) and state.is_accepting())


def print_reach(file: Path) -> int:
    """Print which published answers constrained decoding can write; return the exit status."""
    golden = read_golden(file)
    catalog = load_catalog(CATALOG_FILE, golden.answers)
    counts = Counter[str]()
    print("| model | prompt | constrained decoding | source |\n|---|---|---|---|")
    for model_id, answers in golden.answers.items():
        entry = catalog[model_id]
        vocabulary = Vocabulary.of_family(entry.family)
        for answer in answers:
            grammar = Question.of(entry, answer.prompt, _SIZE_WH).grammar(entry)
            outcome = "cannot write it"
            if answer.excluded is not None:
                outcome = "excluded"
            elif grammar is None:
                outcome = "allows any text"
            elif vocabulary.allows(grammar, answer.text):
                outcome = "can write it"
            counts[outcome] += 1
            reason = f": {answer.excluded}" if answer.excluded else ""
            print(f"| {model_id} | `{answer.prompt}` | {outcome}{reason} | {answer.source} |")
    reached = counts["can write it"] + counts["allows any text"]
    num_excluded = counts["excluded"]
    print(
        f"\n{reached} of {counts.total()} published answers can be written; {num_excluded} excluded"
    )
    return int(counts["cannot write it"] > 0)


def main(arguments: Sequence[str]) -> int:
    """Print the findings about one model; return the exit status."""
    parser = argparse.ArgumentParser("python -m export golden", description=__doc__)
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="an exported model of models/golden.yaml"
    )
    parser.add_argument(
        "--reach", action="store_true", help="count what constrained decoding can write"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images under their published names"
    )
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", default=GOLDEN_FILE, help="of the same form"
    )
    parsed = parser.parse_args(arguments)
    if (parsed.model is None) != parsed.reach:
        parser.error("give a MODEL, or --reach")
    has_failure = False
    try:
        if parsed.reach:
            return print_reach(parsed.answers)
        for finding in findings(model_id_of(parsed.model), parsed.answers, parsed.images):
            print(finding, flush=True)
            has_failure |= finding.verdict == "failure"
    except (ExportError, CatalogError, ArtifactError) as error:
        print(f"python -m export golden: {error}", file=sys.stderr)
        return 1
    return int(has_failure)


def findings(model_id: str, file: Path, images: Path | None) -> Iterator[Finding]:
    """Yield the findings about a model: images that are missing, then its answers."""
    golden = read_golden(file)
    answers = answers_of(golden, model_id, file)
    folder = artifact_folder(model_id)
    manifest = read_manifest(folder)
    if manifest.adapter_of is not None:
        raise SourceError(
            f"{model_id} is an adapter; only its base, {manifest.adapter_of}, answers"
        )
    verify_files(folder, manifest)
    silence_transformers()
    found: dict[str, Image.Image] = {}
    for name in dict.fromkeys(answer.image for answer in answers):
        try:
            found[name] = open_image(name, golden.images[name], images)
        except SourceError as error:
            yield Finding("failure", str(error))
    masks = folder / MASK_DECODER_FILE
    mask_decoder = MaskDecoder.load(masks) if masks.exists() else None
    if found:
        stored = folder / ENTRY_FILE  # hf:owner/name has one
        row = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else None
        entry = find_entry(model_id) if row is None else parse_entry(row)
        yield from GoldenCheck(entry, folder, manifest, mask_decoder, answers, found).findings()


def open_image(name: str, image: GoldenImage, folder: Path | None) -> Image.Image:
    """Return an image; raise `SourceError`."""
    path = find_image(name, image, folder)
    try:
        opened = read_image(path)
    except (OSError, ImageError) as error:
        raise SourceError(f"{path} cannot be read as an image: {error}") from error
    if image.size_wh is not None and image.size_wh != opened.size:
        raise SourceError(
            f"{path} has {_pixels(opened.size)}; the published {name} has {_pixels(image.size_wh)}"
        )
    return opened


def _pixels(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]} x {size_wh[1]} pixels"
