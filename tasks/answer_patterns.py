"""The pattern of a well-formed answer: a small regular expression over tokens, built from these values.

What a decoder does with it is not known here; it takes the same five shapes (`kind` tells them apart).
"""

from dataclasses import dataclass
from typing import Literal, Union

Pattern = Union["OneToken", "ExactText", "InOrder", "OneOf", "Repeated"]


@dataclass(frozen=True, slots=True)
class OneToken:
    """One token of a class: `location`, `segmentation`, `text`, or one control token by its text."""

    of: str
    kind: Literal["token"] = "token"


@dataclass(frozen=True, slots=True)
class ExactText:
    """Exactly this text, in whatever tokens; no token reaches over its ends."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class InOrder:
    """One part after another."""

    parts: tuple[Pattern, ...]
    kind: Literal["in_order"] = "in_order"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of several options."""

    options: tuple[Pattern, ...]
    kind: Literal["one_of"] = "one_of"


@dataclass(frozen=True, slots=True)
class Repeated:
    """A part at least `min` and at most `max` times."""

    part: Pattern
    min: int
    max: int | None
    kind: Literal["repeated"] = "repeated"


LOCATION = OneToken("location")
SEGMENTATION = OneToken("segmentation")
TEXT = OneToken("text")


def in_order(*parts: Pattern) -> Pattern:
    """Return the parts one after another."""
    return InOrder(parts)


def one_of(*options: Pattern) -> Pattern:
    """Return a choice."""
    return OneOf(options)


def times(part: Pattern, count: int) -> Pattern:
    """Return a part `count` times."""
    return Repeated(part, count, count)


def at_least(part: Pattern, count: int) -> Pattern:
    """Return a part `count` times or more."""
    return Repeated(part, count, None)


def optional(part: Pattern) -> Pattern:
    """Return a part that may be missing."""
    return Repeated(part, 0, 1)
