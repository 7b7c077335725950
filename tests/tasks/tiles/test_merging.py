"""Results of views in pixels of the image, each object once; two tiles of 100 x 100."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    FoundObject,
    Instance,
    InstancesResult,
    Ring,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.run_length import decode_mask, encode_mask
from tasks.tiles.grid import PixelBox
from tasks.tiles.merging import (
    MAX_OBJECTS,
    FoundBox,
    Merged,
    View,
    cut_sides,
    joined,
    merge,
    parts_of_objects,
    placed,
    survivors,
    unite_rings,
)

SIZE_WH = (180, 100)
WHOLE = (0, 0, *SIZE_WH)
LEFT = (0, 0, 100, 100)
RIGHT = (80, 0, 180, 100)
VIEWS: list[PixelBox] = [WHOLE, LEFT, RIGHT]
AT_LEFT = (True, False, False, False)
CAPTIONS = "dense_region_captioning"
PROPOSALS = "region_proposal"

Sides = tuple[bool, bool, bool, bool]


def part_of(view: int, box: BoxXyxy, cut: Sides, label: str = "a", score: float = 0.5) -> FoundBox:
    item = Detection(box, label, score)
    return FoundBox(item, box, label, frozenset({view}), cut, VIEWS[view])


def box_of(view: int, box: BoxXyxy, label: str = "a", score: float = 0.5) -> FoundBox:
    return part_of(view, box, cut_sides(box, VIEWS[view], SIZE_WH, 2), label, score)


PART = box_of(1, (60, 20, 100, 60))


@pytest.mark.parametrize(
    ("other", "are_one"),
    [
        (box_of(2, (80, 22, 130, 60)), True),
        (part_of(2, (80, 40, 130, 60), AT_LEFT), True),  # shares half of the edge
        (part_of(2, (104, 20, 130, 60), AT_LEFT), True),  # within the slack of both
        (part_of(2, (105, 20, 130, 60), AT_LEFT), False),
        (box_of(2, (80, 22, 130, 60), label="b"), False),
        (box_of(2, (80, 62, 130, 99)), False),  # beside it
        (box_of(2, (90, 22, 130, 60)), False),  # not cut
        (box_of(2, (80, 20, 98, 60)), False),  # ends before it
        (box_of(1, (60, 20, 100, 61)), False),  # of the same view
        (box_of(2, (80, 20, 100, 60)), False),  # ends where it ends
        (box_of(2, (80, 30, 130, 90)), False),  # shares 30 of 70 pixels of the edge
        (box_of(2, (80, 41, 130, 60)), False),  # 19 of 40
    ],
)
def test_parts_across_an_edge(other: FoundBox, are_one: bool) -> None:
    expected = [[0, 1]] if are_one else [[0], [1]]
    assert parts_of_objects([PART, other], 2, is_text=False) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # the same object in two views, or twice in one: the better one stays
        (box_of(0, (10, 10, 50, 50)), box_of(1, (12, 10, 50, 50), score=0.6), [1]),
        (box_of(1, (0, 0, 20, 30)), box_of(1, (0, 10, 20, 40), score=0.6), [1]),
        # in one view, but without a name, with less than half in common, or within the other
        (box_of(1, (10, 10, 50, 50), ""), box_of(1, (12, 10, 50, 50), "", score=0.6), [0, 1]),
        (box_of(1, (0, 0, 20, 30)), box_of(1, (0, 11, 20, 41), score=0.6), [0, 1]),
        (box_of(1, (0, 0, 40, 40)), box_of(1, (0, 0, 30, 20), score=0.4), [0, 1]),
        (box_of(0, (10, 10, 50, 50)), box_of(1, (10, 10, 50, 50), label="b"), [0, 1]),
        # an object that an edge cuts is worse than one that is whole
        (box_of(0, (60, 10, 140, 50)), box_of(1, (60, 10, 100, 50), score=0.9), [0]),
        (box_of(0, (60, 10, 140, 50)), box_of(1, (60, 10, 100, 50), label="b", score=0.9), [0]),
        # half of either box is shared, and less than half
        (box_of(0, (0, 0, 20, 30)), box_of(1, (0, 10, 20, 40), score=0.6), [1]),
        (box_of(0, (0, 0, 20, 30)), box_of(1, (0, 11, 20, 41), score=0.6), [0, 1]),
        # a quarter of a larger object is a part of it unless it is surer, and less another object
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 0, 20, 20), score=0.4), [0]),
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 0, 20, 20), score=0.6), [0, 1]),
        (box_of(0, (0, 0, 41, 40)), box_of(1, (0, 0, 20, 20), score=0.4), [0, 1]),
        # half of a cut box is within one of its label
        (box_of(0, (60, 10, 90, 50)), box_of(1, (80, 10, 100, 50), score=0.9), [0]),
        (box_of(0, (60, 10, 89, 50)), box_of(1, (80, 10, 100, 50), score=0.9), [0, 1]),
        (box_of(0, (60, 10, 90, 50)), box_of(1, (80, 10, 100, 50), label="b"), [0, 1]),
        (box_of(2, (80, 10, 94, 50), score=0.4), box_of(1, (70, 10, 100, 50)), [0, 1]),
        # boxes without an area have nothing in common
        (box_of(0, (10, 10, 10, 50)), box_of(1, (10, 10, 10, 50)), [0, 1]),
        # four fifths of the smaller box are within the larger one
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 20, 40, 45), score=0.4), [0]),
        (box_of(0, (0, 0, 40, 40)), box_of(1, (0, 21, 40, 46), score=0.4), [0, 1]),
        (box_of(0, (0, 0, 40, 40)), box_of(1, (50, 0, 90, 40)), [0, 1]),
    ],
)
def test_one_box_of_each_object(one: FoundBox, other: FoundBox, expected: list[int]) -> None:
    assert survivors([one, other], is_text=False) == expected
    swapped = [1 - index for index in reversed(expected)]
    assert survivors([other, one], is_text=False) == sorted(swapped)


def test_joined_parts_and_a_view_of_all() -> None:
    parts = joined([box_of(1, (60, 20, 100, 60), score=0.9), box_of(2, (80, 20, 130, 60))])
    whole = box_of(0, (60, 20, 130, 60), score=0.1)
    assert survivors([parts, whole], is_text=False) == [1]


@pytest.mark.parametrize(
    ("part", "line", "expected"),
    [
        ((84, 10, 99, 20), (90, 10, 130, 20), [1]),
        ((80, 10, 99, 20), (90, 10, 130, 20), [1]),
        ((79, 10, 99, 20), (90, 10, 130, 20), [0, 1]),  # begins before the tile of the line
        ((84, 10, 97, 20), (90, 10, 130, 20), [0, 1]),  # not cut
        ((84, 10, 100, 20), (96, 10, 130, 20), [1]),  # a quarter of it
        ((84, 10, 100, 20), (96, 11, 130, 21), [0, 1]),
        ((84, 10, 99, 20), (82, 14, 130, 24), [0, 1]),  # both are cut
        ((84, 10, 99, 20), (82, 12, 130, 24), [1]),  # four fifths of it
    ],
)
def test_part_of_a_line(part: BoxXyxy, line: BoxXyxy, expected: list[int]) -> None:
    """It is dropped where the next tile, which sees all of its place, has a line."""
    boxes: list[FoundBox] = []
    mirrored: list[FoundBox] = []
    for view, box, text in ((1, part, "ab"), (2, line, "abcd")):
        region = TextRegion(((0, 0), (1, 0), (1, 1), (0, 1)), text, 0.5)
        x1, y1, x2, y2 = box
        boxes.append(replace(box_of(view, box, ""), item=region))
        mirrored.append(replace(box_of(3 - view, (180 - x2, y1, 180 - x1, y2), ""), item=region))
    assert survivors(boxes, is_text=True) == survivors(mirrored, is_text=True) == expected


def test_parts_of_a_mask() -> None:
    """A phrase is one object: half of a small part is within it, and no edge cuts the part."""

    def instance(view: int, box: BoxXyxy) -> FoundBox:
        return replace(box_of(view, box), item=Instance(box, "a", 0.5, (), None))

    whole = instance(0, (0, 0, 90, 90))
    assert survivors([whole, instance(1, (85, 10, 95, 20))], is_text=False) == [0]
    assert survivors([whole, instance(1, (86, 10, 96, 20))], is_text=False) == [0, 1]


def corners(step: float) -> NDArray[np.float64]:
    """Return the upper left corners of 100 x 100 boxes, (N, 2)."""
    steps = np.arange(100) * step
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)


def box(
    x1: float, y1: float, x2: float, y2: float, score: float = 0.5, label: str = "a"
) -> Detection:
    return Detection((x1, y1, x2, y2), label, score)


def merged_views(
    task: str, *views: tuple[PixelBox, list[Any]], size_wh: tuple[int, int] = SIZE_WH
) -> Merged:
    kinds = {"instance_segmentation": InstancesResult, "ocr": TextRegionsResult}
    kinds["ocr_with_regions"] = TextRegionsResult
    kind: Any = kinds.get(task, DetectionsResult)
    results = [View(view, kind(tuple(objects), True)) for view, objects in views]
    return merge(task, results, size_wh)


def detected(
    whole: list[Detection],
    left: list[Detection],
    right: list[Detection],
    task: str = "object_detection",
) -> list[FoundObject]:
    merged = merged_views(task, (WHOLE, whole), (LEFT, left), (RIGHT, right))
    objects = list(merged.result.items)
    assert merged.num_merged == len([*whole, *left, *right]) - len(objects)
    return objects


@pytest.mark.parametrize(
    ("whole", "left", "right", "task", "expected"),
    [
        # captions and boxes without labels are compared with all others
        ([box(9, 9, 20, 20, 0.9, "cat")], [box(9, 9, 20, 20, 0.5, "a cat")], [], CAPTIONS, ""),
        ([box(9, 9, 20, 20, 0.9, "")], [box(9, 9, 20, 20, label="")], [], PROPOSALS, ""),
        # a part at an edge, whose place another tile sees
        ([], [box(88, 10, 99, 20)], [], "object_detection", []),
        ([], [box(81, 10, 99, 20)], [], "object_detection", [box(81, 10, 99, 20)]),
    ],
)
def test_detections(
    whole: list[Detection], left: list[Detection], right: list[Detection], task: str, expected: Any
) -> None:
    assert detected(whole, left, right, task) == (whole if expected == "" else expected)


def test_parts_that_are_joined() -> None:
    left = box(40, 10, 99, 50, 0.9)
    assert detected([], [left], [box(81, 12, 140, 50, 0.6)]) == [box(40, 10, 140, 50, 0.6)]
    unscored = replace(left, score=None), replace(box(81, 12, 140, 50), score=None)
    assert detected([], [unscored[0]], [unscored[1]]) == [
        replace(unscored[0], box=(40, 10, 140, 50))
    ]
    other = box(81, 20, 140, 55, 0.9)  # fits less well
    right = box(81, 10, 140, 52, 0.5)
    assert detected([], [left], [other, right]) == [box(40, 10, 140, 52), other]
    views = [((0, 0, 200, 100), list[Detection]()), (LEFT, [left])]
    views.append(((100, 0, 200, 100), [box(101, 10, 140, 50)]))
    merged = merged_views("object_detection", *views, size_wh=(200, 100))  # no overlap
    assert merged.result.items == (box(40, 10, 140, 50),)


def test_parts_at_a_corner() -> None:
    tiles = [(0, 0, 100, 100), (80, 0, 180, 100), (0, 80, 100, 180), (80, 80, 180, 180)]
    whole = ((0, 0, 180, 180), list[Detection]())
    parts = [box(60, 60, 99, 99), box(81, 60, 130, 99), box(60, 81, 99, 120), box(81, 81, 130, 120)]
    views = [(tile, [part]) for tile, part in zip(tiles, parts, strict=True)]
    merged = merged_views("object_detection", whole, *views, size_wh=(180, 180))
    assert merged == Merged(DetectionsResult((box(60, 60, 130, 120),), True), 3)
    # a surer part does not replace joined ones
    parts = [box(40, 50, 99, 96), box(81, 50, 140, 96), box(81, 81, 140, 96, 0.9)]
    views = [(tiles[index], [part]) for index, part in zip((0, 1, 3), parts, strict=True)]
    merged = merged_views("object_detection", whole, *views, size_wh=(180, 180))
    assert merged.result.items == (box(40, 50, 140, 96),)


def test_too_many_objects() -> None:
    sure = [box(index, 10, index + 0.5, 20, 0.9) for index in range(MAX_OBJECTS - 1)]
    unsure = [box(0, 30, 1, 40, 0.1), box(0, 50, 1, 60, 0.2)]
    view = ((0, 0, MAX_OBJECTS, 60), [*unsure, *sure])
    merged = merged_views("object_detection", view, size_wh=(MAX_OBJECTS, 60))
    assert merged == Merged(DetectionsResult((unsure[1], *sure), True), 0, num_left_out=1)


def square(x1: float, y1: float, x2: float, y2: float) -> Ring:
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def bounds(rings: tuple[Ring, ...]) -> list[BoxXyxy]:
    boxes: list[BoxXyxy] = []
    for ring in rings:
        xs, ys = zip(*ring, strict=True)
        boxes.append((min(xs), min(ys), max(xs), max(ys)))
    return sorted(boxes)


@pytest.mark.parametrize("has_mask", [False, True])
def test_shapes_across_a_seam_are_united(has_mask: bool) -> None:
    def instance(x1: int, x2: int, score: float) -> Instance:
        mask = np.zeros((100, 180), dtype=np.bool_)
        mask[10:50, x1:x2] = True
        rings = None if has_mask else (square(x1, 10, x2, 50),)
        run_lengths = encode_mask(mask) if has_mask else None
        return Instance((x1, 10, x2, 50), "a", score, rings, run_lengths)

    left, right = [instance(40, 100, 0.9)], [instance(80, 140, 0.6)]
    views = ((WHOLE, list[Instance]()), (LEFT, left), (RIGHT, right))
    (united,) = merged_views("instance_segmentation", *views).result.items
    assert isinstance(united, Instance)
    assert (united.box, united.score) == ((40, 10, 140, 50), 0.6)
    if has_mask:
        assert united.mask is not None
        assert decode_mask(united.mask).sum() == 40 * 100
    else:
        assert bounds(united.polygons or ()) == [(40, 10, 140, 50)]
    assert (united.mask is None, united.polygons is None) == (not has_mask, has_mask)


def test_holes_of_united_rings() -> None:
    ring = (square(0, 0, 30, 30), square(10, 10, 20, 20))
    united = unite_rings([ring, (square(25, 0, 60, 30), ((1.0, 1.0), (2.0, 2.0)))])
    assert bounds(united) == [(0, 0, 60, 30), (10, 10, 20, 20)]
    assert unite_rings([()]) == ()


def line(text: str, x1: float, x2: float, y: float = 10, score: float = 0.5) -> TextRegion:
    return TextRegion(((x1, y), (x2, y + 1), (x2, y + 11), (x1, y + 10)), text, score)


PARTS = [line("the quick br", 10, 99)], [line("ick brown fox", 81, 170)]


@pytest.mark.parametrize(
    ("whole", "left", "right", "text", "num_merged"),
    [
        (
            [],
            [line("below", 10, 40, 60), line("word", 84, 96, 10, 0.9), line("first", 10, 40)],
            [line("word", 84, 97), line("last", 120, 150)],
            "first word last\nbelow",
            1,
        ),
        ([line("che qvick bnown", 10, 170, score=0.2)], *PARTS, "the quick brown fox", 2),
        ([line("che qvick bnown", 8, 168, score=0.45)], *PARTS, "the quick brown fox", 2),
        # a word that both tiles see is read once
        ([], [line("MM", 84, 99, score=0.9)], [line("MILK", 84, 130)], "MILK", 1),
        ([], [line("KILM", 84, 96, score=0.4)], [line("MILK", 86, 97)], "MILK", 1),
        ([], [line("a big quay", 10, 99)], [line("quiz", 85, 130)], "a big quay", 1),
        ([], [line("HELP", 60, 99)], [line("LO", 98, 130)], "HELP LO", 1),
        ([line("the quick brown fax", 10, 170, score=0.9)], *PARTS, "the quick brown fax", 2),
    ],
)
def test_text(
    whole: list[TextRegion],
    left: list[TextRegion],
    right: list[TextRegion],
    text: str,
    num_merged: int,
) -> None:
    merged = merged_views("ocr", (WHOLE, whole), (LEFT, left), (RIGHT, right))
    assert merged == Merged(TextResult(text, True), num_merged)


def test_line_across_a_seam() -> None:
    left, right = PARTS
    merged = merged_views("ocr_with_regions", (WHOLE, []), (LEFT, left), (RIGHT, right))
    expected = line("the quick brown fox", 10, 170)
    assert merged == Merged(TextRegionsResult((expected,), True), 1)
    texts = {WHOLE: "", LEFT: "one two", RIGHT: "two three"}
    views = [View(view, TextResult(text, True)) for view, text in texts.items()]
    assert merge("ocr", views, SIZE_WH) == Merged(TextResult("one two three", True), 0)


@pytest.mark.parametrize("kind", [DetectionsResult, InstancesResult, TextRegionsResult])
def test_unparsed_view(kind: Any) -> None:
    views = [View(WHOLE, kind((), True)), View(LEFT, kind((), False))]
    assert not merge("object_detection", views, SIZE_WH).result.is_parsed
    assert merge("object_detection", views[:1], SIZE_WH).result == kind((), True)


WHOLE_WH = (640, 480)
CROP = (100, 50, 140, 90)


def test_results_of_a_crop() -> None:
    quad = ((0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (0.0, 3.0))
    detections = DetectionsResult((Detection((1.0, 2.0, 3.5, 4.0), "a", 0.5),), True)
    moved = Detection((101.0, 52.0, 103.5, 54.0), "a", 0.5)
    assert placed(detections, CROP, WHOLE_WH) == DetectionsResult((moved,), True)
    ring = ((1.0, 2.0), (3.0, 2.0), (3.0, 4.0))
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[5:7, 10:30] = True
    outlined = Instance((1.0, 2.0, 3.0, 4.0), "a", 0.5, (ring,), None)
    encoded = replace(outlined, polygons=None, mask=encode_mask(mask))
    instances = InstancesResult((outlined, encoded), True)
    instance, masked = placed(instances, CROP, WHOLE_WH).items
    assert isinstance(instance, Instance)
    assert isinstance(masked, Instance)
    assert masked.mask is not None
    assert instance.polygons == (((101.0, 52.0), (103.0, 52.0), (103.0, 54.0)),)
    whole = decode_mask(masked.mask)
    assert np.array_equal(whole[50:90, 100:140], mask)
    assert (whole.shape, whole.sum()) == ((480, 640), mask.sum())
    regions = TextRegionsResult((TextRegion(quad, "a", 0.5),) * 2, True)
    first, second = placed(regions, CROP, WHOLE_WH).text_regions  # type: ignore[union-attr]
    corners = ((100.0, 50.0), (104.0, 50.0), (104.0, 53.0), (100.0, 53.0))
    assert first.quad == second.quad == corners
    assert placed(TextResult("a", True), CROP, WHOLE_WH) == TextResult("a", True)
