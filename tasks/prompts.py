"""The prompt of a task, as segments that keep a user's text apart from control tokens.

What every prompt of a family has around it (image tokens, `<s>…</s>`, `<bos>…` and a newline) is the runner's.
"""

from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """A piece of a prompt; only a control segment may be read as control tokens such as `<loc_5>`."""

    text: str
    is_control: bool


Prompt = tuple[PromptSegment, ...]


def plain(text: str) -> PromptSegment:
    """Return a segment that is always tokenised as plain text."""
    return PromptSegment(text, is_control=False)


def control(text: str) -> PromptSegment:
    """Return a segment whose text may be read as control tokens."""
    return PromptSegment(text, is_control=True)


def join_segments(*segments: PromptSegment) -> Prompt:
    """Return a prompt without empty segments, and neighbours of one kind merged: BPE has to see them as one string."""
    present = (segment for segment in segments if segment.text)
    groups = groupby(present, key=lambda segment: segment.is_control)
    return tuple(PromptSegment("".join(s.text for s in group), is_control) for is_control, group in groups)
