"""Measures answers in tiles of a running service: `python -m laboratory.tiles [URL]`, five minutes.

Shapes on canvases and on photographs: recall, boxes that are not right, and pairs of boxes of one
label that overlap (IoU of at least .5). Words on a canvas: those read right, and extra ones. A star
across a seam: instances. Requests are of 4 x 5 tiles, of stars 2 x 3.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import starmap

import numpy as np
from numpy.random import default_rng
from PIL import Image

from diptych_client import AnswerOptions, Client
from diptych_client.matching import LabelledBox, match, pairwise_iou
from diptych_client.results import box_of, items_of, label_of, text_of
from export.checkpoints.bases import ROOT
from export.scenes import (
    COLOR_RGB,
    SHAPES,
    SceneObject,
    draw_ring,
    ink_mask,
    outline_xy,
    sample_word,
)
from laboratory.calibration import in_cells, large_images
from laboratory.scenes import Labelled, png
from loadtest.figures import table
from tasks.tiles.grid import Grid, tile_boxes

_SIZE_WH = (2000, 1500)
_MODELS = ("florence-2-mini", "paligemma-mini")
_FINDING = {"florence-2-mini": "object_detection", "paligemma-mini": "open_vocabulary_detection"}
_READING = {"florence-2-mini": "ocr_with_regions", "paligemma-mini": "ocr"}


def photographs() -> Iterator[Labelled]:
    """Yield photographs with nine shapes each."""
    for index, file in enumerate(sorted(ROOT.glob("models/photographs/*.jpg"))[::2]):
        image = Image.open(file).convert("RGB").resize(_SIZE_WH)
        yield in_cells(index, image, Grid(3, 4), 9, (60, 300))


def pages(num_images: int) -> Iterator[tuple[Image.Image, list[str]]]:
    for index in range(num_images):
        rng = default_rng(index)
        image = Image.new("RGB", _SIZE_WH, (40, 40, 60))
        words = []
        for left, top, right, bottom in tile_boxes(Grid(4, 3), _SIZE_WH, 0.0):
            word = sample_word(rng)
            ink = ink_mask(word.text, word.font_face, int(rng.integers(50, 110)))
            x = int(rng.integers(left + 4, right - 4 - ink.width))
            y = int(rng.integers(top + 4, bottom - 4 - ink.height))
            image.paste((255, 255, 255), (x, y), ink)
            words.append(word.text)
        yield image, words


def stars(num_images: int) -> Iterator[Image.Image]:
    """Yield images with a star at one of the two upright seams of 2 x 3 tiles."""
    boxes = tile_boxes(Grid(2, 3), (1600, 1200), 0.2)
    for index in range(num_images):
        rng = default_rng(index)
        image = Image.new("RGB", (1600, 1200), (40, 40, 60))
        radius = float(rng.uniform(60, 240))
        column = index % 2
        x = (boxes[column][2] + boxes[column + 1][0]) / 2 + float(rng.uniform(-60, 60))
        y = float(rng.uniform(radius + 5, 1195 - radius))
        star = SceneObject("red", "star", "large", COLOR_RGB["red"], (x, y), radius)
        draw_ring(image, outline_xy(star), star.rgb)
        yield image


def found_row(client: Client, model: str, images: Iterator[Labelled]) -> list[str]:
    counts = Counter[str]()
    options = AnswerOptions(tiles="4x5")
    labels = {} if model == "florence-2-mini" else {"labels": list(SHAPES)}
    for image, boxes in images:
        answer = client.predict(png(image), _FINDING[model], labels, model=model, options=options)
        truths = list(starmap(LabelledBox, boxes))
        answered = [LabelledBox(label_of(item), box_of(item)) for item in items_of(answer.result)]
        kinds = Counter(pair.kind for pair in match(truths, answered))
        num_right = kinds["right"] + kinds["loosely placed"]
        places = [box.box_xyxy for box in answered]
        overlaps = pairwise_iou(places, places) >= 0.5
        names = np.array([box.label for box in answered])
        same = overlaps & (names[:, None] == names) if len(names) else overlaps
        counts += Counter(
            right=num_right,
            true=len(boxes),
            false=len(answered) - num_right,
            twice=(int(same.sum()) - len(answered)) // 2,
        )
    recall = counts["right"] / counts["true"]
    return [f"{recall:.3f}", str(counts["false"]), str(counts["twice"])]


def words_row(client: Client, model: str, overlap: float) -> list[str]:
    counts = Counter[str]()
    options = AnswerOptions(tiles="4x5", overlap=overlap)
    for image, words in pages(12):
        answer = client.predict(png(image), _READING[model], model=model, options=options)
        regions = items_of(answer.result)
        text = " ".join(map(label_of, regions)) if regions else text_of(answer.result) or ""
        read = Counter(text.split())
        counts += Counter(right=(read & Counter(words)).total(), all=read.total())
    return [str(counts["right"]), str(counts["all"] - counts["right"])]


def star_row(client: Client, model: str) -> list[str]:
    options = AnswerOptions(tiles="2x3")
    phrase = {"phrase": "red star"}
    num_instances = 0
    for image in stars(30):
        answer = client.predict(
            png(image), "instance_segmentation", phrase, model=model, options=options
        )
        num_instances += len(items_of(answer.result))
    return [f"{num_instances / 30:.2f}"]


def main(url: str) -> None:
    rows = []
    with Client(url) as client:
        for model in _MODELS:
            row = [model, *found_row(client, model, large_images(16))]
            row += found_row(client, model, photographs())
            row += [*words_row(client, model, 0.2), *words_row(client, model, 0.3)]
            rows.append(row + star_row(client, model))
    box_columns = ("recall", "false", "twice")
    word_columns = ("right of 144", "extra")
    header = [f"canvases: {name}" for name in box_columns] + [
        f"photographs: {name}" for name in box_columns
    ]
    header += [f"words, .2: {name}" for name in word_columns] + [
        f"words, .3: {name}" for name in word_columns
    ]
    print(table(["model", *header, "instances of a star"], rows))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000")
