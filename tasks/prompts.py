"""The prompt of a task, as segments that keep user text apart from control tokens.

The tokens that surround every prompt of a family (image tokens, `<s>…</s>`, `<bos>…` and a newline)
are the runner's.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from tasks.catalog import CatalogEntry
from tasks.errors import ParameterError, UnsupportedTask
from tasks.results import BoxXyxy
from tasks.table import TaskParameters

_PARTS = re.compile(r"(\{[a-z]+\}|<[^<>\s]+>)")  # fields and tags of a template


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """Part of a prompt; only a control segment may hold control tokens, as `<loc_5>`."""

    text: str
    is_control: bool = False
    is_token: bool = False  # refused where the checkpoint has no such control token


Prompt = tuple[PromptSegment, ...]


@dataclass(frozen=True, slots=True)
class AskedTask:
    """A task requested by a model's prompt, not by its id; its JSON values are not validated."""

    task_id: str
    values: Mapping[str, object] = field(default_factory=dict)
    # the parameter `region`, as fractions of the image's width and height
    region_shares: BoxXyxy | None = None


def entry_template(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str | None:
    """Return the entry's own template for a task that it offers, or None.

    It asks in one way. Raise `UnsupportedTask` for another task, detail or language.
    """
    if task_id not in entry.task_ids:
        offered = ", ".join(entry.task_ids)
        raise UnsupportedTask("task", f"{entry.id} does not offer {task_id}; it offers {offered}")
    template = entry.templates.get(task_id)
    if template is None or (task_id == "instance_segmentation" and parameters.region is not None):
        return None
    default_detail = "description" if task_id == "region_description" else "short"
    if parameters.detail not in (None, default_detail):
        raise unsupported(entry, "detail", default_detail, parameters.detail)
    if parameters.language not in (None, "en") and "{language}" not in template:
        raise unsupported(entry, "language", "en", parameters.language)
    return template


def unsupported(
    entry: CatalogEntry, param: str, allowed: str, value: str | None
) -> UnsupportedTask:
    return UnsupportedTask(param, f"{entry.id} supports {param} {allowed} only, not {value}")


def fill_prompts(
    template: str,
    parameters: TaskParameters,
    names: Iterable[str],
    image_size_wh: tuple[int, int],
    box_tokens: Callable[[BoxXyxy, tuple[int, int]], str],
) -> tuple[Prompt, ...]:
    """Return the template filled for each of `names`; raise `ParameterError` for a bad region."""
    values = {
        "{language}": PromptSegment(parameters.language or "en"),
        "{question}": PromptSegment(parameters.question or ""),
        "{caption}": PromptSegment(parameters.caption or ""),
    }
    if (region := parameters.region) is not None:
        width, height = image_size_wh
        if region[2] > width or region[3] > height:
            allowed = f"within the image: x from 0 to {width}, y from 0 to {height}"
            raise ParameterError("region", f"region must be {allowed}; it is {list(region)}")
        values["{region}"] = PromptSegment(box_tokens(region, image_size_wh), is_control=True)
    prompts: list[Prompt] = []
    for name in names:
        values["{phrase}"] = PromptSegment(name)
        segments: list[PromptSegment] = []
        for part in _PARTS.split(template):
            # a tag may be a control token of the checkpoint, as `<DocVQA>`; a user's text never is
            is_tag = part.startswith("<") and part.endswith(">")
            segments.append(values.get(part) or PromptSegment(part, is_control=is_tag))
        prompts.append(join_segments(*segments))
    return tuple(prompts)


def read_templates(entry: CatalogEntry, text: str, region: str, tag: str = "") -> AskedTask | None:
    """Return the first task of the entry whose template `text` has the form of, or None.

    Only templates with `tag` count: a bare one, "{question}", has the form of any text. `region` is
    the regular expression of the tokens that `{region}` stands for. A text with a region has the
    tokens of a prompt, not the box of a request: it is not read.
    """
    for task_id in entry.task_ids:
        template = entry.templates.get(task_id)
        if template is None or tag not in template:
            continue
        values = _read_template(template, text, region)
        if values is not None and "region" not in values:
            return AskedTask(task_id, values)
    return None


def _read_template(template: str, text: str, region: str) -> dict[str, str] | None:
    pattern = ""
    for part in _PARTS.split(template):
        match part:
            case "{region}":
                pattern += f"(?P<region>{region})"
            case "{language}":
                pattern += r"(?P<language>[a-z]+)"
            case "{question}" | "{phrase}":
                pattern += f"(?P<{part[1:-1]}>.+)"
            case _:
                pattern += re.escape(part)
    match = re.fullmatch(pattern, text.strip(), re.DOTALL)
    return match and match.groupdict()


def join_segments(*segments: PromptSegment) -> Prompt:
    """Return a prompt with adjacent segments of a kind merged, as BPE depends on context."""
    present = (segment for segment in segments if segment.text)
    groups = groupby(present, key=attrgetter("is_control"))
    joined: list[PromptSegment] = []
    for is_control, group in groups:
        joined.append(PromptSegment("".join(segment.text for segment in group), is_control))
    return tuple(joined)
