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
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Self

import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor

from export.artifacts.store import verified
from export.checkpoints.bases import CATALOG_FILE, ROOT
from export.checkpoints.jobs import find_entry
from export.checkpoints.sources import fetch_file
from export.checks.asking import Question
from export.checks.encoding import encode
from export.checks.parity import first_difference
from export.checks.reference import load_for_checks
from export.doctor import Finding, Verdict
from export.errors import ExportError, SourceError, one_line
from export.resources import needs_of
from imaging.containers import ImageError
from imaging.files import read_image, resize
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.errors import SequenceError
from runners.tokens.text import Constraints
from tasks.catalog import CatalogEntry, CatalogError, load_catalog, model_id_of, parse_entry
from tasks.errors import TaskError
from tasks.paligemma import MaskDecoder
from tasks.results import DetectionsResult, InstancesResult, Result, TextRegionsResult
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import (
    ENTRY_FILE,
    MASK_DECODER_FILE,
    ArtifactError,
    Device,
    Manifest,
    Precision,
)

GOLDEN_FILE = ROOT / "models" / "golden.yaml"
HUB_URL = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/resolve/main/([\w./-]+)")
_EXCERPT_CHARS = 60
_MAX_PROMPT_TOKENS = 1024
# any vocabulary with the family's location tokens: text is constrained byte by byte
_VOCABULARIES = {"florence2": "florence-2-mini", "paligemma": "paligemma-mini"}
_SIZE_WH = (640, 480)  # of any image


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenImage(_Strict):
    """An image that answers are about; a local one has no URL."""

    url: str | None = Field(None, pattern=f"^(?:{HUB_URL.pattern})$")
    size_wh: tuple[int, int] | None = None


class GoldenRegion(_Strict):
    """A box, the first outline of an object, or a quadrilateral; label '' is not compared."""

    label: str
    at: list[int]  # x and y in turn, in whole pixels, cut off


class GoldenAnswer(_Strict):
    """The answer to one prompt about one image."""

    image: str
    prompt: str
    max_new_tokens: int = Field(ge=1, le=4096)
    source: str
    weak: bool = False
    excluded: str | None = None  # why constrained decoding need not be able to write it
    text: str
    regions: list[GoldenRegion] | None = None


class GoldenFile(_Strict):
    """All images and answers of a file."""

    images: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], GoldenImage]
    answers: dict[str, list[GoldenAnswer]]

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        for answer in chain.from_iterable(self.answers.values()):
            if answer.image not in self.images:
                raise ValueError(f"{answer.image} is not among the images")
        return self


def read_golden(file: Path = GOLDEN_FILE) -> GoldenFile:
    """Read a file of answers; raise `SourceError`."""
    try:
        return GoldenFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SourceError(f"{file} has no published answers: {one_line(error)}") from error


Part = tuple[Precision, Device]


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """The comparison of one exported model."""

    entry: CatalogEntry
    folder: Path
    manifest: Manifest
    answers: Sequence[GoldenAnswer]
    images: Mapping[str, Image.Image]

    def findings(self) -> Iterator[Finding]:
        precision = self.manifest.precision
        encoder_on = encoder_device("auto")
        decoder_on = decoder_device("auto")
        default: tuple[Part, Part] = (
            (precision[encoder_on]["encoder"], encoder_on),
            (precision[decoder_on]["decoder"], decoder_on),
        )
        float32: Part = ("float32", "cpu")
        for encoder, decoder in dict.fromkeys((default, (float32, float32))):
            yield from self._findings(encoder, decoder)

    def _findings(self, encoder: Part, decoder: Part) -> Iterator[Finding]:
        manifest = self.manifest
        resized = []
        for image in self.images.values():
            resized.append(resize(image, manifest.image_size_wh, manifest.resample))
        rows = encode(self.folder, encoder[0], resized, encoder[1])
        features = dict(zip(self.images, rows, strict=True))
        longest = max(answer.max_new_tokens for answer in self.answers)
        max_positions = manifest.num_image_tokens + _MAX_PROMPT_TOKENS + longest
        is_large = needs_of(self.entry).is_large
        loaded = load_for_checks(
            self.folder, manifest.family, decoder[0], is_large, max_positions, decoder[1]
        )
        for answer in self.answers:
            try:
                finding = self._compare(loaded, answer, features[answer.image])
            except (SequenceError, TaskError) as error:
                finding = Finding("failure", f"no answer: {error}")
            where = f"{encoder[0]}+{decoder[0]} {answer.image} {answer.prompt!r}"
            yield Finding(finding.verdict, f"{where}: {finding.text}")

    def _compare(self, decoder: Decoder, answer: GoldenAnswer, features: Tensor) -> Finding:
        """Compare one answer; raise `SequenceError` or `TaskError` if there is none."""
        size_wh = self.images[answer.image].size
        question = Question.of_text(self.entry, answer.prompt, size_wh)
        request = question.request(decoder, features, answer.max_new_tokens)
        (sequence,) = generate_all(decoder, [request])
        text = framed_text(decoder, sequence.token_ids)
        if (start := first_difference(text, answer.text)) is not None:
            differing = f"expected {excerpt(answer.text, start)}, got {excerpt(text, start)}"
            verdict: Verdict = "warning" if answer.weak else "failure"
            return Finding(verdict, f"from character {start + 1} {differing}")
        if question.task_id is not None and answer.regions is not None:
            masks = self.folder / MASK_DECODER_FILE
            mask_decoder = MaskDecoder.load(masks) if masks.exists() else None
            result = question.result(decoder, sequence, size_wh, mask_decoder)
            if not has_regions(result, answer.regions):
                return Finding("failure", f"the text is equal, the regions differ: got {result}")
        return Finding("ok", f"expected and got {excerpt(text)}")


def framed_text(decoder: Decoder, token_ids: Sequence[int]) -> str:
    """Return an answer as it is published: without its first start token and its end tokens."""
    rules = decoder.rules
    written = [token_id for token_id in token_ids if token_id not in rules.eos_token_ids]
    if written[:1] == [rules.forced_bos_token_id]:
        del written[0]
    stream = decoder.text.tokenizer.text_stream()
    return "".join(map(stream, written))


def excerpt(text: str, start: int = 0) -> str:
    end = start + _EXCERPT_CHARS
    return repr(f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}")


def has_regions(result: Result, regions: Sequence[GoldenRegion]) -> bool:
    written = list(_regions_of(result))
    if len(written) != len(regions):
        return False
    for region, (label, at) in zip(regions, written, strict=True):
        if region.at != list(map(int, at)) or region.label not in ("", label):
            return False
    return True


def _regions_of(result: Result) -> Iterator[tuple[str, Iterable[float]]]:
    match result:
        case DetectionsResult():
            for detection in result.detections:
                yield detection.label, detection.box
        case InstancesResult():
            for instance in result.instances:
                for ring in instance.polygons or ():
                    yield instance.label, chain.from_iterable(ring)
        case TextRegionsResult():
            for region in result.text_regions:
                yield region.text, chain.from_iterable(region.quad)


def print_reach(file: Path) -> int:
    """Print which published answers constrained decoding can write; return the exit status."""
    golden = read_golden(file)
    catalog = load_catalog(CATALOG_FILE, golden.answers)
    counts = Counter[str]()
    print("| model | prompt | constrained decoding | source |\n|---|---|---|---|")
    for model_id, answers in golden.answers.items():
        entry = catalog[model_id]
        vocabulary = ROOT / "models" / _VOCABULARIES[entry.family] / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(vocabulary))
        constraints = Constraints.load(vocabulary, ())
        for answer in answers:
            grammar = Question.of_text(entry, answer.prompt, _SIZE_WH).grammar
            outcome = "allows any text"
            if answer.excluded is not None:
                outcome = "excluded"
            elif grammar is not None:
                # A decoder that follows the grammar can write the text and end.
                state = constraints.get(grammar).matcher.deep_copy()
                ids = tokenizer.encode(answer.text, add_special_tokens=False).ids
                is_whole = state.try_consume_tokens(ids) == len(ids) and state.is_accepting()
                outcome = "can write it" if is_whole else "cannot write it"
            counts[outcome] += 1
            reason = f": {answer.excluded}" if answer.excluded else ""
            print(f"| {model_id} | `{answer.prompt}` | {outcome}{reason} | {answer.source} |")
    num_written = counts["can write it"] + counts["allows any text"]
    print(
        f"\n{num_written} of {counts.total()} published answers can be written;"
        f" {counts['excluded']} excluded"
    )
    return int(counts["cannot write it"] > 0)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m export golden", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="an exported model of models/golden.yaml")
    add("--reach", action="store_true", help="count what constrained decoding can write")
    add("--images", type=Path, metavar="FOLDER", help="images under their published names")
    add("--answers", type=Path, metavar="FILE", default=GOLDEN_FILE, help="of the same form")
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
    golden = read_golden(file)
    answers = golden.answers.get(model_id)
    if answers is None:
        raise SourceError(f"{file} has no answers of {model_id}: {', '.join(golden.answers)}")
    folder, manifest = verified(model_id)
    stored = folder / ENTRY_FILE  # hf:owner/name has one
    if stored.exists():
        entry = parse_entry(json.loads(stored.read_text(encoding="utf-8")))
    else:
        entry = find_entry(model_id)
    opened = {answer.image: open_image(golden, answer.image, images) for answer in answers}
    yield from GoldenCheck(entry, folder, manifest, answers, opened).findings()


def open_image(golden: GoldenFile, name: str, folder: Path | None) -> Image.Image:
    """Return an image of `folder`, or of the hub if there is no folder; raise `SourceError`."""
    published = golden.images[name]
    match = HUB_URL.fullmatch(published.url or "")
    if folder is not None:
        path = folder / name
    elif match is not None:
        path = fetch_file(match[1], match[2], "dataset")
    else:
        raise SourceError(f"{name} has no URL: give the folder that has it as --images FOLDER")
    try:
        opened = read_image(path)
    except (OSError, ImageError) as error:
        raise SourceError(f"cannot read {name} ({published.url}): {error}") from error
    if published.size_wh not in (None, opened.size):
        raise SourceError(f"{path} has {opened.size} pixels; the published, {published.size_wh}")
    return opened
