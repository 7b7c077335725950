"""Published answers of released checkpoints: models/golden.yaml, or a file of the same form.

Knows no models; fetches an image only when it is asked for.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.checkpoints.bases import ROOT
from export.checkpoints.hub import fetch_file
from export.errors import SourceError
from tasks.results import (
    DetectionsResult,
    InstancesResult,
    Result,
    TextRegionsResult,
    TextResult,
)

GOLDEN_FILE = ROOT / "models" / "golden.yaml"
MAX_IMAGE_BYTES = 20_000_000
_MAX_FILE_BYTES = 5_000_000
_MAX_ANSWERS = 1000
_MAX_TEXT_CHARS = 100_000
_HUB_URL = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/resolve/main/([\w./-]+)")
_CONFIG = ConfigDict(extra="forbid", frozen=True)


class GoldenImage(BaseModel):
    """An image that answers are about; a local one has no URL."""

    model_config = _CONFIG

    url: str | None = Field(None, pattern=f"^(?:{_HUB_URL.pattern})$")
    size_wh: tuple[int, int] | None = None


class GoldenRegion(BaseModel):
    """A box, the first outline of an object, or a quadrilateral; label '' is not compared."""

    model_config = _CONFIG

    label: str
    at: list[int]  # x and y in turn, in whole pixels, cut off


class GoldenAnswer(BaseModel):
    """The answer to one prompt about one image."""

    model_config = _CONFIG

    image: str
    prompt: str = Field(max_length=_MAX_TEXT_CHARS)
    max_new_tokens: int = Field(ge=1, le=4096)
    source: str
    weak: bool = False
    excluded: str | None = None  # why constrained decoding need not be able to write it
    text: str = Field(max_length=_MAX_TEXT_CHARS)
    regions: list[GoldenRegion] | None = None


class GoldenFile(BaseModel):
    """All images and answers of a file."""

    model_config = _CONFIG

    images: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], GoldenImage]
    answers: dict[str, Annotated[list[GoldenAnswer], Field(max_length=_MAX_ANSWERS)]]


def read_golden(file: Path = GOLDEN_FILE) -> GoldenFile:
    """Read a file of answers; raise `SourceError`."""
    try:
        if (size := file.stat().st_size) > _MAX_FILE_BYTES:
            raise SourceError(f"{file} has {size} bytes; at most {_MAX_FILE_BYTES} are allowed")
        golden = GoldenFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SourceError(
            f"{file} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SourceError(f"{file} has a wrong value at {place}: {first['msg']}") from error
    for answers in golden.answers.values():
        for answer in answers:
            if answer.image not in golden.images:
                raise SourceError(
                    f"{file} has an answer about {answer.image}, which is not among its images"
                )
    return golden


def answers_of(golden: GoldenFile, model_id: str, file: Path = GOLDEN_FILE) -> list[GoldenAnswer]:
    """Return the answers of a model; raise `SourceError` if there are none."""
    if model_id not in golden.answers:
        raise SourceError(
            f"{file} has no answers of {model_id}; it has those of {', '.join(golden.answers)};"
            " --answers FILE reads others of the same form"
        )
    return golden.answers[model_id]


def golden_offer(model_id: str, file: Path = GOLDEN_FILE) -> str | None:
    """Return a line about the published answers of a model, if there are any: an image has not the
    file.
    """
    answers = read_golden(file).answers.get(model_id) if file.is_file() else None
    if answers is None:
        return None
    return f"{len(answers)} published answers to compare with: python -m export golden {model_id}"


def find_image(name: str, image: GoldenImage, folder: Path | None) -> Path:
    """Return the file of an image: in `folder`, or fetched from the hub if there is no folder.

    Raise `SourceError`; its message names the file to get and its place.
    """
    if folder is not None:
        if not (folder / name).is_file():
            wanted = (
                f"save {image.url} as {folder / name}" if image.url else f"put it into {folder}"
            )
            raise SourceError(f"{name} is missing: {wanted}")
        return folder / name
    match = _HUB_URL.fullmatch(image.url or "")
    if match is None:
        raise SourceError(f"{name} has no URL: give the folder that has it as --images FOLDER")
    repository, path = match.groups()
    try:
        return fetch_file(repository, path, "dataset", MAX_IMAGE_BYTES)
    except SourceError as error:
        raise SourceError(
            f"{name} is missing: {error}; or save {image.url} as FOLDER/{name} and give --images"
            " FOLDER"
        ) from error


def has_regions(result: Result, regions: Sequence[GoldenRegion]) -> bool:
    """Return True if a result has the published regions, in their order."""
    found = [(label, list(map(int, at))) for label, at in regions_of(result)]
    return len(found) == len(regions) and all(
        each.at == at and each.label in ("", label)
        for each, (label, at) in zip(regions, found, strict=True)
    )


def regions_of(result: Result) -> Iterator[tuple[str, Iterable[float]]]:
    """Yield label and coordinates of each region."""
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
        case TextResult():
            pass
