"""Published answers of released checkpoints: models/golden.yaml, or a file of the same form.

Knows no models, and needs no torch.
"""

import re
from itertools import chain
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from export.checkpoints.bases import ROOT
from export.errors import SourceError, one_line

GOLDEN_FILE = ROOT / "models" / "golden.yaml"
HUB_URL = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/resolve/main/([\w./-]+)")


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
