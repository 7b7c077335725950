"""The pattern of a well-formed answer, as it travels to a decoder: a small regular expression over tokens.

One token of a class, an exact text in whatever tokens, parts in order, one of several options, a part repeated.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Classes of tokens, or the text of one control token such as `<sep>`.
LOCATION = "location"  # `<loc_5>`, `<loc0005>`
SEGMENTATION = "segmentation"  # `<seg005>`
TEXT = "text"  # every token that is not a control token


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class OneToken(_Part):
    """One token of a class."""

    kind: Literal["token"] = "token"
    of: str

    @property
    def reads_something(self) -> bool:
        """Always."""
        return True


class ExactText(_Part):
    """Exactly this text."""

    kind: Literal["text"] = "text"
    text: str

    @property
    def reads_something(self) -> bool:
        """Whether it is not empty."""
        return bool(self.text)


class InOrder(_Part):
    """One part after another."""

    kind: Literal["in_order"] = "in_order"
    parts: tuple["Pattern", ...]


class OneOf(_Part):
    """One of several options."""

    kind: Literal["one_of"] = "one_of"
    options: tuple["Pattern", ...]


class Repeated(_Part):
    """A part at least `min` times and at most `max` times, without end where that is None."""

    kind: Literal["repeated"] = "repeated"
    part: "Pattern"
    min: int = Field(ge=0)
    max: int | None = None


Pattern = Annotated[OneToken | ExactText | InOrder | OneOf | Repeated, Field(discriminator="kind")]
