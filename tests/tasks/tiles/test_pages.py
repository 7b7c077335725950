"""A page of text that is read rightly in tiles is merged to the text of the page."""

import random
from itertools import chain

import pytest

from tasks.results import TextRegion, TextRegionsResult, TextResult
from tasks.tiles.grid import Grid, PixelBox, tile_boxes
from tasks.tiles.merging import View, merge

PAGE_WH = (2480, 3508)
MARGIN_PX = 150
LETTER_WH = (24, 44)
LINE_PX = 150
NUM_LINES = 20
WORDS_OF_A_LINE = 10
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def page() -> list[list[str]]:
    """Return the words of 20 lines."""
    rng = random.Random(37)
    lines: list[list[str]] = []
    for _ in range(NUM_LINES):
        sizes = [rng.randint(2, 10) for _ in range(WORDS_OF_A_LINE)]
        lines.append(["".join(rng.choices(LETTERS, k=size)) for size in sizes])
    return lines


def reading(lines: list[list[str]], tile: PixelBox) -> TextRegionsResult:
    """Return the letters of each line that the tile has by half at least, as one region."""
    left, top, right, bottom = tile
    width, height = LETTER_WH
    regions: list[TextRegion] = []
    for number, words in enumerate(lines):
        y = MARGIN_PX + number * LINE_PX
        if not top <= y + height / 2 <= bottom:
            continue
        text = " ".join(words)
        indices = [i for i in range(len(text)) if left <= MARGIN_PX + (i + 0.5) * width <= right]
        read = "".join(text[i] for i in indices)
        if read.strip():
            x1 = max(MARGIN_PX + (indices[0] + len(read) - len(read.lstrip())) * width, left)
            x2 = min(MARGIN_PX + (indices[-1] + 1 - len(read) + len(read.rstrip())) * width, right)
            y1 = max(y, top)
            y2 = min(y + height, bottom)
            quad = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
            regions.append(TextRegion(quad, read.strip(), 0.9))
    return TextRegionsResult(tuple(regions), True)


@pytest.mark.parametrize("grid", [Grid(2, 2), Grid(3, 4), Grid(6, 5), Grid(8, 8)])
def test_words_of_a_page(grid: Grid) -> None:
    lines = page()
    views = [View((0, 0, *PAGE_WH), TextRegionsResult((), True))]
    for tile in tile_boxes(grid, PAGE_WH, 0.2):
        views.append(View(tile, reading(lines, tile)))
    merged = merge("ocr", views, PAGE_WH).result
    assert isinstance(merged, TextResult)
    words = list(chain.from_iterable(lines))
    assert len(words) == NUM_LINES * WORDS_OF_A_LINE
    assert merged.text.split() == words
    assert len(merged.text.splitlines()) == NUM_LINES
