"""`python -m export golden MODEL`: compares an exported model's answers with published ones, one
line for each answer and precision.

    ok        int8+int8 car.jpg '<CAPTION>': expected and got 'a green car parked in front of…'
    failure   int8+int8 car.jpg '<OD>': from character 7 expected '…53>', got '…54>'

The answers are those of models/golden.yaml: other software wrote them, with the released weights,
by the checkpoint's own rules. Each is asked at the default precision on this host's devices, and in
float32 on its CPU. A difference from an answer marked as weak is a warning. The exit status is 1
after a failure. How a text parses is tested without weights (tests/export/test_golden.py).
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from export.artifacts.store import verified
from export.checkpoints.bases import ROOT
from export.checkpoints.jobs import find_entry
from export.checkpoints.sources import fetch_file
from export.checks.asking import Question
from export.checks.encoding import encode
from export.checks.parity import first_difference
from export.checks.reference import load_for_checks
from export.doctor import Finding, report
from export.errors import ExportError, SourceError, one_line
from export.resources import needs_of
from imaging.containers import ImageError
from imaging.files import read_image, resize
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.errors import SequenceError
from tasks.catalog import CatalogEntry, CatalogError, model_id_of, parse_entry
from tasks.errors import TaskError
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import ENTRY_FILE, ArtifactError, Device, Manifest, Precision

GOLDEN_FILE = ROOT / "models" / "golden.yaml"
HUB_URL = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/resolve/main/([\w./-]+)")
Part = tuple[Precision, Device]
_EXCERPT_CHARS = 60
_MAX_PROMPT_TOKENS = 1024


class GoldenImage(BaseModel, extra="forbid", frozen=True):
    """An image that answers are about; one without a URL is local."""

    url: str | None = Field(None, pattern=f"^(?:{HUB_URL.pattern})$")
    size_wh: tuple[int, int] | None = None


class GoldenAnswer(BaseModel, extra="forbid", frozen=True):
    """The answer to one prompt about one image."""

    image: str
    prompt: str
    max_new_tokens: int = Field(ge=1, le=4096)
    source: str
    weak: bool = False
    excluded: str | None = None  # why constrained decoding need not be able to write it
    text: str
    regions: list[dict[str, Any]] | None = None  # the published parse, for the tests


class GoldenFile(BaseModel, extra="forbid", frozen=True):
    """All images and answers of a file."""

    images: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], GoldenImage]
    answers: dict[str, list[GoldenAnswer]]


def read_golden(file: Path = GOLDEN_FILE) -> GoldenFile:
    """Read a file of answers; raise `SourceError`."""
    try:
        return GoldenFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SourceError(f"{file} has no published answers: {one_line(error)}") from error


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m export golden", description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="an exported model of models/golden.yaml")
    add("--images", type=Path, metavar="FOLDER", help="images under their published names")
    add("--answers", type=Path, metavar="FILE", default=GOLDEN_FILE, help="of the same form")
    parsed = parser.parse_args(arguments)
    try:
        return report(findings(model_id_of(parsed.model), parsed.answers, parsed.images))
    except (ExportError, CatalogError, ArtifactError) as error:
        print(f"python -m export golden: {error}", file=sys.stderr)
        return 1


def findings(model_id: str, file: Path, images: Path | None) -> Iterator[Finding]:
    """Yield the comparisons of a model; raise `ExportError`, `CatalogError` or `ArtifactError`."""
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
    check = GoldenCheck(entry, folder, manifest, answers, opened)
    encoder_on = encoder_device("auto")
    decoder_on = decoder_device("auto")
    encoder: Part = (manifest.precision[encoder_on]["encoder"], encoder_on)
    decoder: Part = (manifest.precision[decoder_on]["decoder"], decoder_on)
    float32: Part = ("float32", "cpu")
    yield from check.findings(encoder, decoder)
    if (encoder, decoder) != (float32, float32):
        yield from check.findings(float32, float32)


def open_image(golden: GoldenFile, name: str, folder: Path | None) -> Image.Image:
    """Return an image of `folder`, or of the hub if there is no folder; raise `SourceError`."""
    published = golden.images.get(name, GoldenImage())
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


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """The comparison of one exported model."""

    entry: CatalogEntry
    folder: Path
    manifest: Manifest
    answers: Sequence[GoldenAnswer]
    images: Mapping[str, Image.Image]

    def findings(self, encoder: Part, decoder: Part) -> Iterator[Finding]:
        """Yield the comparison of each answer, in one pair of precisions."""
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
        question = Question.of_text(self.entry, answer.prompt, self.images[answer.image].size)
        request = question.request(decoder, features, answer.max_new_tokens)
        (sequence,) = generate_all(decoder, [request])
        # as it is published: without its first start token and its end tokens
        eos = decoder.rules.eos_token_ids
        token_ids = [token_id for token_id in sequence.token_ids if token_id not in eos]
        if token_ids[:1] == [decoder.rules.forced_bos_token_id]:
            del token_ids[0]
        text = "".join(map(decoder.text.tokenizer.text_stream(), token_ids))
        start = first_difference(text, answer.text)
        if start is None:
            return Finding("ok", f"expected and got {excerpt(text)}")
        differing = f"expected {excerpt(answer.text, start)}, got {excerpt(text, start)}"
        text = f"from character {start + 1} {differing}"
        return Finding("warning" if answer.weak else "failure", text)


def excerpt(text: str, start: int = 0) -> str:
    end = start + _EXCERPT_CHARS
    return repr(f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}")
