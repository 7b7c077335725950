"""The prompt of a task, as segments that keep user text apart from control tokens.

The tokens that surround every prompt of a family (image tokens, `<s>…</s>`, `<bos>…` and a newline)
are the runner's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from tasks.results import BoxXyxy

_TAG = re.compile(r"(<[^<>\s]+>)")


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """Part of a prompt; only a control segment may hold control tokens, as `<loc_5>`."""

    text: str
    is_control: bool = False


Prompt = tuple[PromptSegment, ...]


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task requested by a model's prompt, not by its id; its JSON values are not validated."""

    task_id: str
    values: Mapping[str, object] = field(default_factory=dict)
    # the parameter `region`, as fractions of the image's width and height
    region_shares: BoxXyxy | None = None


def fill_template(template: str, field_name: str, text: str) -> Prompt:
    """Return an operator's template with a user's text in the place of `field_name`.

    Tags of the template, such as `<DocVQA>`, may be control tokens of the checkpoint; the text's
    never are.
    """
    before, found, after = template.partition(field_name)
    return join_segments(*_tagged(before), PromptSegment(text if found else ""), *_tagged(after))


def _tagged(text: str) -> Iterator[PromptSegment]:
    for index, part in enumerate(_TAG.split(text)):
        yield PromptSegment(part, is_control=index % 2 == 1)


def join_segments(*segments: PromptSegment) -> Prompt:
    """Return a prompt with adjacent segments of a kind merged, as BPE depends on context."""
    present = (segment for segment in segments if segment.text)
    groups = groupby(present, key=attrgetter("is_control"))
    joined: list[PromptSegment] = []
    for is_control, group in groups:
        text = "".join(segment.text for segment in group)
        joined.append(PromptSegment(text, is_control))
    return tuple(joined)
