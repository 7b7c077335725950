"""Readings of one text by several views, as one: each word is written once, in reading order."""

from collections.abc import Mapping, Sequence
from itertools import chain

from tasks.results import BoxXyxy

_MIN_SHARED_CHARS = 2  # a shorter end of a word is found at the start of any other
_MIN_ROW_OVERLAP = 0.5  # of the lower of two boxes on one line


def joined_line(left: str, right: str) -> str:
    """Return two readings of a line of text, whose right one begins within the left one, as one."""
    shared = _continued(left, right)
    return f"{left} {right}".strip() if shared is None else shared


def reading_order(boxes: Sequence[BoxXyxy]) -> list[list[int]]:
    """Return the indices of the boxes line by line, each from left to right."""
    lines: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda index: boxes[index][1]):
        if lines and _is_on_line(boxes[index], boxes[lines[-1][0]]):
            lines[-1].append(index)
        else:
            lines.append([index])
    return [sorted(line, key=lambda index: boxes[index][0]) for line in lines]


def merged_text(whole: str, rows: Sequence[Mapping[int, str]]) -> str:
    """Return the text of tiles, row by row, and of the whole image; it has no places.

    A row has the texts of its tiles by their left edges. A tile sees a part of a large word: it is
    completed from the whole image's text. Words that only the whole image's text has are not taken:
    where letters are too small, a model invents them.
    """
    lines: list[str] = []
    above: Mapping[int, str] = {}
    for row in rows:
        of_row: list[str] = []
        for left, text in sorted(row.items()):
            new = _without_repeated(above.get(left, "").splitlines(), text.splitlines())
            of_row = _beside(of_row, new)
        lines += of_row
        above = row
    if not any(lines):
        return whole
    words = frozenset(whole.split())
    return "\n".join(_completed(line, words) for line in lines)


def _without_repeated(upper: Sequence[str], lower: Sequence[str]) -> Sequence[str]:
    """Return the lines of a tile without the first ones, which end the tile above it."""
    num_shared = min(len(upper), len(lower))
    while list(upper[len(upper) - num_shared :]) != list(lower[:num_shared]):
        num_shared -= 1
    return lower[num_shared:]


def _is_on_line(box: BoxXyxy, first: BoxXyxy) -> bool:
    shared = min(box[3], first[3]) - max(box[1], first[1])
    lower = min(box[3] - box[1], first[3] - first[1])
    return shared >= _MIN_ROW_OVERLAP * lower


def _beside(left: Sequence[str], right: Sequence[str]) -> list[str]:
    """Return the lines of two tiles that are side by side: as many in both are the same lines."""
    if len(left) == len(right):
        return list(map(joined_line, left, right))
    lines = list(left)
    unmatched = list(range(len(left)))
    for text in right:
        for index in unmatched:
            if (line := _continued(left[index], text)) is not None:
                lines[index] = line
                unmatched.remove(index)
                break
        else:
            lines.append(text)
    return lines


def _continued(left: str, right: str) -> str | None:
    """Return one line of two whose left one ends as the right one begins, or None."""
    first = left.split()
    second = right.split()
    for num_shared in range(min(len(first), len(second)), 0, -1):
        shared = _shared_words(first[-num_shared:], second[:num_shared])
        if shared is not None:
            return " ".join(chain(first[:-num_shared], shared, second[num_shared:]))
    return None


def _shared_words(ends: Sequence[str], starts: Sequence[str]) -> list[str] | None:
    """Return the words that both readings have, or None; each may be cut at its own end."""
    last = len(ends) - 1
    words: list[str] = []
    for index, (end, start) in enumerate(zip(ends, starts, strict=True)):
        if end == start:
            words.append(end)
        elif last == 0 and (word := _overlapping(end, start)):
            words.append(word)
        elif index == 0 and last > 0 and end.endswith(start):
            words.append(end)
        elif index == last > 0 and start.startswith(end):
            words.append(start)
        else:
            return None
    return words


def _overlapping(end: str, start: str) -> str | None:
    """Return the word whose left part is `end` and whose right part is `start`, or None."""
    for num_chars in range(min(len(end), len(start)), _MIN_SHARED_CHARS - 1, -1):
        if end[-num_chars:] == start[:num_chars]:
            return end + start[num_chars:]
    return None


def _completed(line: str, words: frozenset[str]) -> str:
    """Return a line whose parts of one of `words` are that word, once."""
    completed: list[str] = []
    last_is_part = False
    for part in line.split():
        word = _word_of(part, words)
        is_part = word != part
        if completed[-1:] != [word] or not (is_part or last_is_part):
            completed.append(word)
        last_is_part = is_part
    return " ".join(completed)


def _word_of(part: str, words: frozenset[str]) -> str:
    """Return the longer word that `part` begins or ends, or `part`."""
    if part in words or len(part) < _MIN_SHARED_CHARS:
        return part
    longer = [word for word in words if word.startswith(part) or word.endswith(part)]
    return max(longer, key=lambda word: (len(word), word), default=part)
