"""Large images in tiles by other libraries, over this service without `tiles`.

supervision's InferenceSlicer suppresses boxes of tiles by their IoU, SAHI's GreedyNMM (arXiv
2202.06934; its defaults) unites boxes of tiles and of the whole image by the share of the smaller
one. SAHI is not a dependency: `pip install sahi` measures it too.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import numpy as np
import supervision
from numpy.typing import NDArray
from PIL import Image

from tasks.tiles.grid import PixelBox

NUM_CLIENTS = 8

Detected = Sequence[Mapping[str, Any]]  # detections of an answer
Ask = Callable[[bytes], Detected]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def by_supervision(ask: Ask, image: Image.Image, tiles: Sequence[PixelBox]) -> Detected:
    """Return what InferenceSlicer finds with tiles of the same size and overlap."""
    labels: list[str] = []

    def detections(pixels: NDArray[np.uint8]) -> supervision.Detections:
        found = ask(_png(pixels))
        labels.extend(each["label"] for each in found)
        if not found:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.asarray([each["box"] for each in found], dtype=np.float64),
            confidence=np.asarray([each["score"] for each in found]),
            class_id=np.asarray([labels.index(each["label"]) for each in found]),
        )

    left, top, right, bottom = tiles[0]
    next_left = min((tile[0] for tile in tiles if tile[0] > left), default=right)
    next_top = min((tile[1] for tile in tiles if tile[1] > top), default=bottom)
    slicer = supervision.InferenceSlicer(
        detections,
        slice_wh=(right - left, bottom - top),
        overlap_wh=(right - next_left, bottom - next_top),
        thread_workers=NUM_CLIENTS,
    )
    merged = slicer(np.asarray(image))
    if merged.confidence is None or merged.class_id is None:
        return []
    rows = zip(merged.xyxy.tolist(), merged.confidence, merged.class_id, strict=True)
    return [{"box": box, "score": score, "label": labels[index]} for box, score, index in rows]


def by_sahi(ask: Ask, image: Image.Image, tiles: Sequence[PixelBox]) -> Detected:
    """Return what SAHI makes of the boxes of the tiles and of the whole image."""
    views = [(0, 0, *image.size), *tiles]
    pixels = np.asarray(image)
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        files = [_png(pixels[top:bottom, left:right]) for left, top, right, bottom in views]
        answers = list(pool.map(ask, files))
    return merged_by_sahi(answers, views, image.size)


def merged_by_sahi(
    answers: Sequence[Detected], views: Sequence[PixelBox], image_size_wh: tuple[int, int]
) -> Detected:
    """Return the boxes of views, merged by SAHI."""
    width, height = image_size_wh
    prediction = import_module("sahi.prediction").ObjectPrediction
    found: list[Any] = []
    labels: list[str] = []
    for view, answer in zip(views, answers, strict=True):
        for each in answer:
            labels.append(each["label"])
            made = prediction(
                bbox=each["box"],
                category_id=labels.index(each["label"]),
                category_name=each["label"],
                score=each["score"],
                shift_amount=list(view[:2]),
                full_shape=[height, width],
            )
            found.append(made.get_shifted_object_prediction())
    combine = import_module("sahi.postprocess.combine").GreedyNMMPostprocess
    merge = combine(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    return [
        {"box": each.bbox.to_xyxy(), "score": each.score.value, "label": each.category.name}
        for each in merge(found)
    ]
