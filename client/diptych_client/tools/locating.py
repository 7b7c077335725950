"""Whether a model's boxes land where they should: `diptych locate MODEL`.

Drawn scenes with known boxes, in images of five shapes, are asked about. For each shape and axis
the centres of the boxes are fitted: `answer = offset + scale * truth`, in shares of the side. An
engine that swaps axes, pads, crops or resizes leaves fits of its own, which name the fault.
Outliers, the model's own errors, are trimmed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw

from diptych_client.geometry import BoxXyxy
from diptych_client.results import Answer
from diptych_client.tools.matching import Floats, pairwise_iou

LABELS = ("circle", "square")
SIZES_WH = ((640, 640), (1200, 1200), (1024, 768), (768, 1024), (900, 600))
_COLORS = ("red", "green", "blue", "orange", "purple")
_BACKGROUND_RGB = (235, 235, 235)
_RADII = (0.12, 0.2)  # shares of a side
_BORDER = 0.004  # share of a side: a box so near to it may have been cut
_MIN_BOXES = 8  # of one shape of image
_MIN_WHOLE = 4  # of those, away from the borders
_MAX_MOVED = 0.015  # share of a side
_EDGES = np.array([0.15, 0.85])  # where two fits are compared


@dataclass(frozen=True, slots=True)
class DrawnScene:
    """An image with an object of each label, and their boxes in pixels."""

    image: Image.Image
    boxes: Mapping[str, BoxXyxy]


def drawn_scenes(num_scenes: int, seed: int = 0) -> Iterator[DrawnScene]:
    rng = default_rng(seed)
    for index in range(num_scenes):
        yield _drawn_scene(SIZES_WH[index % len(SIZES_WH)], rng)


def _drawn_scene(size_wh: tuple[int, int], rng: Generator) -> DrawnScene:
    image = Image.new("RGB", size_wh, _BACKGROUND_RGB)
    draw = ImageDraw.Draw(image)
    first, second = rng.permutation(_COLORS)[:2]
    circle = square = _random_square(size_wh, rng)
    while pairwise_iou([circle], [square]).any():
        square = _random_square(size_wh, rng)
    draw.ellipse(circle, fill=str(first))
    draw.rectangle(square, fill=str(second))
    return DrawnScene(image, {"circle": circle, "square": square})


def _random_square(size_wh: tuple[int, int], rng: Generator) -> BoxXyxy:
    """Return a square that is stretched as the image is: some models see each image as a square."""
    width, height = size_wh
    radius = float(rng.uniform(*_RADII))
    x, y = rng.uniform(1.1 * radius, 1 - 1.1 * radius, 2).tolist()
    left, right = ((x - radius) * width, (x + radius) * width)
    top, bottom = ((y - radius) * height, (y + radius) * height)
    return (left, top, right, bottom)


@dataclass(frozen=True, slots=True)
class Location:
    """The fault in the places of a model's boxes, "" without one, and the errors of the boxes."""

    problem: str
    # errors of the boxes' worst corners, shares of the side: the median and the 95th percentile
    median_error: float
    high_error: float
    num_boxes: int
    num_expected: int

    def __str__(self) -> str:
        boxes = f"{self.num_boxes} of {self.num_expected} objects found"
        if not self.problem:
            middle = f"right within {100 * self.median_error:.1f} % of the side"
            return f"{middle}, 95 of 100 within {100 * self.high_error:.1f} %; {boxes}"
        return f"{self.problem}; {boxes}"


def located(scenes: Iterable[DrawnScene], answers: Iterable[Answer | Exception]) -> Location:
    """Return where the boxes of the answers are; an error counts as an answer without boxes."""
    pairs: dict[tuple[int, int], list[Floats]] = {size_wh: [] for size_wh in SIZES_WH}
    num_expected = 0
    problem = "too few boxes to tell where they land"
    for scene, answer in zip(scenes, answers, strict=True):
        num_expected += len(scene.boxes)
        if isinstance(answer, Exception):
            problem = str(answer)
            continue
        size_wh = scene.image.size
        sides = np.array([*size_wh, *size_wh])
        for label, box in scene.boxes.items():
            items = [item for item in answer.result.items if item.label == label]
            if items:
                best = max(items, key=lambda item: item.rank)
                pairs[size_wh].append(np.array([box, best.box_xyxy]) / sides)
    num_boxes = sum(map(len, pairs.values()))
    stacked = {size_wh: np.reshape(boxes, (-1, 2, 4)) for size_wh, boxes in pairs.items()}
    whole = {}
    for size_wh, boxes in stacked.items():
        is_whole = (boxes[:, 1] > _BORDER) & (boxes[:, 1] < 1 - _BORDER)
        whole[size_wh] = boxes[is_whole.all(axis=1)]
    if min(map(len, pairs.values())) < _MIN_BOXES or min(map(len, whole.values())) < _MIN_WHOLE:
        return Location(problem, 0, 0, num_boxes, num_expected)
    errors = [np.abs(boxes[:, 1] - boxes[:, 0]).max(axis=1) for boxes in stacked.values()]
    median, high = np.quantile(np.concatenate(errors), [0.5, 0.95]).tolist()
    return Location(_problem(whole), median, high, num_boxes, num_expected)


def _problem(pairs: Mapping[tuple[int, int], Floats]) -> str:
    straight, straight_error = _fits(pairs, is_swapped=False)
    _, swapped_error = _fits(pairs, is_swapped=True)
    if swapped_error < straight_error / 2:
        return "x and y are swapped: the order of the dialect's coordinates is wrong"
    explanations = _explanations(straight)
    deviations = {name: _deviation(straight, fits).max() for name, fits in explanations.items()}
    if deviations[""] <= _MAX_MOVED:
        return ""
    name = min(deviations, key=deviations.__getitem__)
    if deviations[name] <= _MAX_MOVED:
        return name
    moves = _deviation(straight, explanations[""])
    shape, axis = np.unravel_index(moves.argmax(), moves.shape)
    width, height = SIZES_WH[shape]
    amount = f"{moves.max():.2f} of the {('width', 'height')[axis]}"
    return f"boxes are moved by {amount} at {width} x {height}: frame or resize of the engine"


def _fits(pairs: Mapping[tuple[int, int], Floats], is_swapped: bool) -> tuple[Floats, float]:
    """Return offset and scale by shape and axis, (shapes, 2, 2), and the mean error of the fits."""
    fits = np.empty((len(SIZES_WH), 2, 2))
    errors = []
    for row, size_wh in enumerate(SIZES_WH):
        centres = (pairs[size_wh][:, :, :2] + pairs[size_wh][:, :, 2:]) / 2  # (N, 2, axes)
        for axis in (0, 1):
            truth = centres[:, 0, 1 - axis if is_swapped else axis]
            fits[row, axis], error = _trimmed_fit(truth, centres[:, 1, axis])
            errors.append(error)
    return fits, float(np.mean(errors))


def _trimmed_fit(truth: Floats, answered: Floats) -> tuple[Floats, float]:
    """Return offset and scale, and the median error, without the outliers of a first fit."""
    is_kept = np.ones(len(truth), np.bool_)
    for _ in range(5):
        design = np.stack([np.ones(len(truth)), truth], axis=1)
        solution = np.linalg.lstsq(design[is_kept], answered[is_kept], rcond=None)
        fit = solution[0].astype(np.float64)
        errors = np.abs(answered - design @ fit)
        median = float(np.median(errors))
        is_kept = errors <= 4 * median + 1e-9
    return fit, median


def _explanations(fits: Floats) -> dict[str, Floats]:
    """Return the fits that the usual faults of engines would leave, by their descriptions."""
    sides = np.array(SIZES_WH, dtype=np.float64)  # (shapes, 2)
    longest = sides.max(axis=1, keepdims=True)
    shortest = sides.min(axis=1, keepdims=True)
    scales = fits[:, :, 1]
    common = float(np.median(scales))
    pixels_wh = np.median(scales * sides, axis=0)
    share = float(np.median(scales / sides)) or math.inf
    centred = (longest - sides) / (2 * longest)
    cropped = (shortest - sides) / (2 * shortest)
    resized_to = " x ".join(f"{side:.0f}" for side in pixels_wh)
    zeros = np.zeros_like(sides)
    farther = f"boxes are {common:.3f} times as far from the corner: resize or frame"
    in_pixels = f"boxes are in pixels, 1 to {1 / share:.0f}: the dialect's frame is wrong"
    candidates = {
        "": (zeros, zeros + 1),
        "the engine pads images to squares, around the image": (centred, sides / longest),
        "the engine pads images to squares, right and below": (zeros, sides / longest),
        "the engine crops images to squares": (cropped, sides / shortest),
        farther: (zeros, zeros + common),
        f"boxes are in pixels of images resized to {resized_to}": (zeros, pixels_wh / sides),
        in_pixels: (zeros, share * sides),
    }
    explanations = {}
    for name, (offsets, its_scales) in candidates.items():
        explanations[name] = np.stack([offsets, its_scales], axis=2)
    return explanations


def _deviation(fits: Floats, others: Floats) -> Floats:
    """Return how far two fits are apart at most, by shape and axis."""
    differences = fits - others
    at_edges = differences[:, :, :1] + differences[:, :, 1:] * _EDGES
    deviations: Floats = np.abs(at_edges).max(axis=2)
    return deviations
