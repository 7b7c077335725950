"""Measures boxes in 4 x 5 tiles of a running service: `python -m laboratory.tiles [URL]`.

Shapes on canvases and on photographs: recall, boxes that are not right, and pairs of boxes of one
label that overlap (IoU of at least .5).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import starmap

import numpy as np
from PIL import Image

from diptych_client import AnswerOptions, Client
from diptych_client.matching import LabelledBox, match, pairwise_iou
from diptych_client.results import box_of, items_of, label_of
from export.checkpoints.bases import ROOT
from export.scenes import SHAPES
from laboratory.calibration import in_cells, large_images
from laboratory.scenes import Labelled, png
from loadtest.figures import table
from tasks.tiles.grid import Grid

_OPTIONS = AnswerOptions(tiles="4x5")
_REQUESTS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "florence-2-mini": ("object_detection", {}),
    "paligemma-mini": ("open_vocabulary_detection", {"labels": list(SHAPES)}),
}


def photographs() -> Iterator[Labelled]:
    """Yield photographs with nine shapes each."""
    for index, file in enumerate(sorted(ROOT.glob("models/photographs/*.jpg"))[::2]):
        image = Image.open(file).convert("RGB").resize((2000, 1500))
        yield in_cells(index, image, Grid(3, 4), 9, (60, 300))


def cells(client: Client, model: str, images: Iterator[Labelled]) -> list[str]:
    """Return the recall, the number of false boxes, and that of pairs on one object."""
    counts = Counter[str]()
    task, labels = _REQUESTS[model]
    for image, boxes in images:
        answer = client.predict(png(image), task, labels, model=model, options=_OPTIONS)
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


def main(url: str) -> None:
    rows = []
    with Client(url) as client:
        for model in _REQUESTS:
            rows.append([model, "canvases", *cells(client, model, large_images(16))])
            rows.append([model, "photographs", *cells(client, model, photographs())])
    print(table(["model", "images", "recall", "false", "twice"], rows))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000")
