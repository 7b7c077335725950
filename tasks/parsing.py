"""Shared by both parsers: the generated text, its location tokens, boxes, labels."""

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tasks import results
from tasks.catalog import CatalogEntry
from tasks.table import ResultKind, TaskParameters

if TYPE_CHECKING:
    from tasks.paligemma import MaskDecoder

_ARTICLE = re.compile(r"^(?:an?|the) ", re.IGNORECASE)


Span = tuple[int, int]  # start and end offset in the text


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A decoder's answer without bos, eos and padding, with location and other control tokens."""

    text: str
    token_ends: Sequence[int]  # offset in `text` after each token, non-decreasing
    logprobs: Sequence[float]  # of each token
    finish_reason: Literal["stop", "length"]

    def score(self, label: Sequence[Span], runs: Sequence["Locations"]) -> float:
        """Return the label's probability times the geometric mean of the locations', 0 to 1.

        The mean, so that scores of boxes and of outlines, which have more of them, are comparable.
        """
        spans = [(run[0].span[0], run[-1].span[1]) for run in runs]
        of_locations = self._logprobs_in(spans)
        mean = math.fsum(of_locations) / max(1, len(of_locations))
        return min(1.0, math.exp(math.fsum(self._logprobs_in(label)) + mean))

    def _logprobs_in(self, spans: Sequence[Span]) -> list[float]:
        # a token that completes no character (a byte of a longer one) has no width: it belongs to
        # the token after it
        starts = (0, *self.token_ends)
        indices = set[int]()
        for start, end in spans:
            first = bisect_right(self.token_ends, start)
            while first > 0 and starts[first - 1] == starts[first] == start:
                first -= 1
            last = bisect_left(starts, end, first, len(self.token_ends))
            indices.update(range(first, last))
        return [self.logprobs[index] for index in indices]


@dataclass(frozen=True, slots=True)
class AnsweredTask:
    """The task that a model has answered, and what a parser needs besides the texts."""

    entry: CatalogEntry
    task_id: str
    parameters: TaskParameters
    image_size_wh: tuple[int, int]
    mask_format: results.MaskFormat = "polygon"
    mask_decoder: "MaskDecoder | None" = None  # PaliGemma's
    banned_phrases: frozenset[str] = frozenset()  # Florence-2's: of a caption, without boxes


@dataclass(frozen=True, slots=True)
class Location:
    """A location token in a text."""

    bin_index: int
    span: Span


Locations = Sequence[Location]  # adjacent tokens, at least one


def in_pieces(runs: Iterable[Locations], num_locations: int) -> Iterator[Locations]:
    """Yield pieces of `num_locations`, without an incomplete last one of a run."""
    for run in runs:
        for start in range(0, len(run) - num_locations + 1, num_locations):
            yield run[start : start + num_locations]


_RESULTS: dict[
    ResultKind, type[results.DetectionsResult | results.InstancesResult | results.TextRegionsResult]
] = {
    "detections": results.DetectionsResult,
    "instances": results.InstancesResult,
    "text_regions": results.TextRegionsResult,
}


def read_objects(
    kind: ResultKind,
    answers: Sequence[GeneratedText],
    names_per_prompt: Sequence[Sequence[str]],
    read: Callable[[GeneratedText, Sequence[str]], Iterable[results.FoundObject | None]],
    is_strict: bool,
    banned: frozenset[str] = frozenset(),
) -> results.Result:
    """Return the objects that `read` finds in each answer, for the names of its prompt.

    `read` yields None for an object that lacks its label; the answer is then not parsed.
    If `is_strict`, boxes with other labels than these names are dropped: for a name that is not in
    the image a model may write another one. Only the raw text keeps it.
    """
    objects: list[results.FoundObject] = []
    is_parsed = True
    for answer, names in zip(answers, names_per_prompt, strict=True):
        written = tuple(read(answer, names))
        is_parsed &= None not in written and (bool(written) or not answer.text.strip())
        for item in written:
            if item is None:
                continue
            if isinstance(item, results.Detection):
                is_other = is_strict and bool(names) and item.label not in names
                if is_other or item.label in banned:
                    continue
            objects.append(item)
    return _RESULTS[kind](tuple(objects), is_parsed)  # type: ignore[arg-type]  # of the kind


def resolve_label(written: str, names: Sequence[str]) -> str:
    """Return the requested name that equals `written` ignoring case and article, else `written`.

    If `written` is empty, return the requested name if there is exactly one, else ''.
    """
    if not written:
        return names[0] if len(names) == 1 else ""
    bare = without_article(written).casefold()
    equal = [name for name in names if without_article(name).casefold() == bare]
    return min(equal, key=lambda name: name.casefold() != written.casefold(), default=written)


def spellings(names: Iterable[str]) -> str:
    """Return a grammar (Lark) of the texts that `resolve_label` reads as one of `names`."""
    bare = " | ".join(f"{json.dumps(without_article(name))}i" for name in names)
    return f'" "? ("a "i | "an "i | "the "i)? ({bare})'


def without_article(name: str) -> str:
    """Return `red circle` for `a red circle`."""
    return _ARTICLE.sub("", name)
