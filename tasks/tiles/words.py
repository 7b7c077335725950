"""Readings of one text by several views, as one: each word is written once, in reading order."""

from collections.abc import Mapping, Sequence
from itertools import chain

from tasks.results import BoxXyxy

_MIN_SHARED_CHARS = 2  # a shorter end of a word is found at the start of any other
_MIN_WORD_SHARE = 0.25  # share of the shorter of two readings of one word
_MIN_ROW_OVERLAP = 0.5  # share of the lower of two boxes on one line


def joined_line(left: str, right: str, num_common_chars: float = 0.0) -> str:
    """Return two readings of a line of text, whose right one begins within the left one, as one.

    About `num_common_chars` of both are at the same place: of two words there that differ, the
    shorter one is cut.
    """
    line = _continued(left, right)
    if line is None:
        first = left.split()
        second = right.split()
        num_chars = min(len(first[-1]), len(second[0])) if first and second else 0
        if num_chars and num_common_chars >= _MIN_WORD_SHARE * num_chars:
            first[-1] = max(first[-1], second.pop(0), key=len)
        line = " ".join(chain(first, second))
    return line


def reading_order(boxes: Sequence[BoxXyxy]) -> list[list[int]]:
    lines: list[list[int]] = []
    for index in sorted(range(len(boxes)), key=lambda index: boxes[index][1]):
        _, top, _, bottom = boxes[index]
        _, line_top, _, line_bottom = boxes[lines[-1][0]] if lines else (0.0, 0.0, 0.0, 0.0)
        shared = min(bottom, line_bottom) - max(top, line_top)
        if lines and shared >= _MIN_ROW_OVERLAP * min(bottom - top, line_bottom - line_top):
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
    tiles_above: Mapping[int, str] = {}
    for row in rows:
        of_row: list[str] = []
        beside: list[int] = []  # lines of the last tile
        for left, text in sorted(row.items()):
            above = tiles_above.get(left, "").splitlines()
            lines_of_tile = text.splitlines()
            num_shared = min(len(above), len(lines_of_tile))  # lines that both tiles see
            while above[len(above) - num_shared :] != lines_of_tile[:num_shared]:
                num_shared -= 1
            beside = _continue_lines(of_row, beside, lines_of_tile[num_shared:])
        lines += of_row
        tiles_above = row
    if not any(lines):
        return whole
    words = frozenset(whole.split())
    return "\n".join(_completed(line, words) for line in lines)


def _continue_lines(lines: list[str], beside: Sequence[int], right: Sequence[str]) -> list[int]:
    """Add the lines of a tile to a row's and return their indices; `beside` are the last tile's.

    As many in both tiles are the same lines.
    """
    if len(beside) == len(right):
        for index, text in zip(beside, right, strict=True):
            lines[index] = joined_line(lines[index], text)
        return list(beside)
    unmatched = list(beside)
    indices: list[int] = []
    for text in right:
        for index in unmatched:
            if (line := _continued(lines[index], text)) is not None:
                lines[index] = line
                unmatched.remove(index)
                break
        else:
            index = len(lines)
            lines.append(text)
        indices.append(index)
    return indices


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
        elif last == 0:  # both parts of one word
            num_chars = min(len(end), len(start))
            while num_chars >= _MIN_SHARED_CHARS and end[-num_chars:] != start[:num_chars]:
                num_chars -= 1
            if num_chars < _MIN_SHARED_CHARS:
                return None
            words.append(end + start[num_chars:])
        elif index == 0 and end.endswith(start):
            words.append(end)
        elif index == last and start.startswith(end):
            words.append(start)
        else:
            return None
    return words


def _completed(line: str, words: frozenset[str]) -> str:
    """Return a line whose parts of one of `words`, its beginning or end, are that word, once."""
    completed: list[str] = []
    last_is_part = False
    for part in line.split():
        longer: list[str] = []
        if part not in words and len(part) >= _MIN_SHARED_CHARS:
            longer = [word for word in words if word.startswith(part) or word.endswith(part)]
        is_part = bool(longer)
        word = max(longer, key=lambda word: (len(word), word), default=part)
        if completed[-1:] != [word] or not (is_part or last_is_part):
            completed.append(word)
        last_is_part = is_part
    return " ".join(completed)
