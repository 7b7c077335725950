"""Published answers of released checkpoints: models/golden.yaml, or a file of the same form.

Knows no models, and needs no torch.
"""

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.checkpoints.bases import ROOT
from export.errors import SourceError

GOLDEN_FILE = ROOT / "models" / "golden.yaml"
HUB_URL = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/resolve/main/([\w./-]+)")
_MAX_FILE_BYTES = 5_000_000
_MAX_ANSWERS = 1000
_MAX_TEXT_CHARS = 100_000


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
    prompt: str = Field(max_length=_MAX_TEXT_CHARS)
    max_new_tokens: int = Field(ge=1, le=4096)
    source: str
    weak: bool = False
    excluded: str | None = None  # why constrained decoding need not be able to write it
    text: str = Field(max_length=_MAX_TEXT_CHARS)
    regions: list[GoldenRegion] | None = None


class GoldenFile(_Strict):
    """All images and answers of a file."""

    images: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], GoldenImage]
    answers: dict[str, Annotated[list[GoldenAnswer], Field(max_length=_MAX_ANSWERS)]]


def read_golden(file: Path = GOLDEN_FILE) -> GoldenFile:
    """Read a file of answers; raise `SourceError`."""
    try:
        if (size := file.stat().st_size) > _MAX_FILE_BYTES:
            raise SourceError(f"{file} has {size} bytes; at most {_MAX_FILE_BYTES} are allowed")
        golden = GoldenFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{file} cannot be read as YAML: {reason}") from error
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


def golden_offer(model_id: str, file: Path = GOLDEN_FILE) -> str | None:
    """Return a line about the published answers of a model, if there are any; a container image
    has not the file.
    """
    answers = read_golden(file).answers.get(model_id) if file.is_file() else None
    if answers is None:
        return None
    return f"{len(answers)} published answers to compare with: python -m export golden {model_id}"
