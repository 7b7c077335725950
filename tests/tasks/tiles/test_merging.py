"""Results of views in pixels of the image, each object once; two tiles of 100 x 100."""

from collections.abc import Callable

import numpy as np
import pytest

from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Ring,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from tasks.run_length import decode_mask, encode_mask
from tasks.tiles.merging import MAX_OBJECTS, Merged, View, merge, placed, unite_rings

SIZE_WH = (180, 100)
WHOLE = (0, 0, 180, 100)
LEFT = (0, 0, 100, 100)
RIGHT = (80, 0, 180, 100)


def box(
    x1: float, y1: float, x2: float, y2: float, score: float = 0.5, label: str = "a"
) -> Detection:
    return Detection((x1, y1, x2, y2), label, score)


def detected(
    whole: list[Detection],
    left: list[Detection],
    right: list[Detection],
    task: str = "object_detection",
) -> list[Detection]:
    found = zip((WHOLE, LEFT, RIGHT), (whole, left, right), strict=True)
    views = [View(view, DetectionsResult(tuple(items), True)) for view, items in found]
    merged = merge(task, views, SIZE_WH)
    assert isinstance(merged.result, DetectionsResult)
    assert merged.num_merged == len([*whole, *left, *right]) - len(merged.result.detections)
    return list(merged.result.detections)


@pytest.mark.parametrize("task", ["dense_region_captioning", "region_proposal"])
def test_boxes_with_captions_or_without_labels_are_compared_with_all(task: str) -> None:
    labels = ("a red cat", "a cat") if task == "dense_region_captioning" else ("", "")
    whole = [box(10, 10, 20, 20, 0.9, labels[0])]
    assert detected(whole, [box(10, 11, 20, 20, label=labels[1])], [], task) == whole


def test_parts_on_both_sides_of_a_seam_are_one_object() -> None:
    assert detected([], [box(40, 10, 99, 50, 0.9)], [box(81, 12, 140, 50, 0.6)]) == [
        box(40, 10, 140, 50, 0.6)
    ]


def test_parts_that_a_seam_without_overlap_divides_are_one_object() -> None:
    views = [
        View((0, 0, 200, 100), DetectionsResult((), True)),
        View((0, 0, 100, 100), DetectionsResult((box(40, 10, 99, 50),), True)),
        View((100, 0, 200, 100), DetectionsResult((box(101, 10, 140, 50),), True)),
    ]
    assert merge("object_detection", views, (200, 100)).result == DetectionsResult(
        (box(40, 10, 140, 50),), True
    )


def test_joined_parts_are_kept_rather_than_a_surer_part() -> None:
    tiles = [(0, 0, 100, 100), (80, 0, 180, 100), (80, 80, 180, 180)]
    found = [box(40, 50, 99, 96), box(81, 50, 140, 96), box(81, 81, 140, 96, 0.9)]
    views = [View((0, 0, 180, 180), DetectionsResult((), True))]
    for tile, part in zip(tiles, found, strict=True):
        views.append(View(tile, DetectionsResult((part,), True)))
    merged = merge("object_detection", views, (180, 180))
    assert merged.result == DetectionsResult((box(40, 50, 140, 96),), True)


def test_a_part_is_joined_with_one_of_each_view_that_fits_best() -> None:
    left = box(40, 10, 99, 50)
    worse = box(81, 20, 140, 55, 0.9)
    assert detected([], [left], [worse, box(81, 10, 140, 52)]) == [box(40, 10, 140, 52), worse]


def test_the_four_parts_at_a_corner_are_one_object() -> None:
    corners = [(0, 0), (80, 0), (0, 80), (80, 80)]
    tiles = [(x, y, x + 100, y + 100) for x, y in corners]
    parts = [box(60, 60, 99, 99), box(81, 60, 130, 99), box(60, 81, 99, 120), box(81, 81, 130, 120)]
    views = [View((0, 0, 180, 180), DetectionsResult((), True))]
    for tile, part in zip(tiles, parts, strict=True):
        views.append(View(tile, DetectionsResult((part,), True)))
    merged = merge("object_detection", views, (180, 180))
    assert merged == Merged(DetectionsResult((box(60, 60, 130, 120),), True), 3)


def test_a_part_at_an_edge_is_dropped_if_another_tile_sees_its_place() -> None:
    assert detected([], [box(88, 10, 99, 20)], []) == []
    at_both_edges = box(81, 10, 99, 20)
    assert detected([], [at_both_edges], []) == [at_both_edges]


def test_a_part_that_a_model_moved_off_the_edge_is_dropped() -> None:
    whole = box(86, 10, 106, 20, 0.4)
    assert detected([], [box(80, 10, 91, 20, 0.9)], [whole]) == [whole]
    below = box(70, 10, 84, 20, 0.9)  # 16 pixels from the edge
    assert detected([], [below], [whole]) == [below, whole]


@pytest.mark.parametrize("task", ["dense_region_captioning", "region_proposal"])
def test_without_common_labels_only_a_large_part_is_dropped(task: str) -> None:
    whole = box(86, 10, 106, 20, label="")
    assert detected([], [box(80, 10, 91, 20, label="")], [whole], task) == [whole]
    small = box(80, 10, 91, 14, label="")  # less than a quarter
    assert detected([], [small], [whole], task) == [small, whole]


def test_of_too_many_objects_the_least_sure_are_left_out() -> None:
    sure = [box(index, 10, index + 0.5, 20, 0.9) for index in range(MAX_OBJECTS - 1)]
    unsure = [box(0, 30, 1, 40, 0.1), box(0, 50, 1, 60, 0.2)]
    views = [View((0, 0, MAX_OBJECTS, 60), DetectionsResult((*unsure, *sure), True))]
    merged = merge("object_detection", views, (MAX_OBJECTS, 60))
    assert merged == Merged(DetectionsResult((unsure[1], *sure), True), 0, num_left_out=1)


def square(x1: float, y1: float, x2: float, y2: float) -> Ring:
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def bounds(rings: tuple[Ring, ...]) -> list[BoxXyxy]:
    return sorted(
        (*map(min, zip(*ring, strict=True)), *map(max, zip(*ring, strict=True))) for ring in rings
    )


def test_the_polygons_of_an_object_across_a_seam_are_united() -> None:
    left = Instance((40, 10, 100, 50), "a", 0.9, (square(40, 10, 100, 50),), None)
    right = Instance((80, 10, 140, 50), "a", 0.6, (square(80, 10, 140, 50),), None)
    views = [
        View(view, InstancesResult(found, True))
        for view, found in ((WHOLE, ()), (LEFT, (left,)), (RIGHT, (right,)))
    ]
    merged = merge("instance_segmentation", views, SIZE_WH)
    assert isinstance(merged.result, InstancesResult)
    (instance,) = merged.result.instances
    assert (instance.box, instance.score, instance.mask) == ((40, 10, 140, 50), 0.6, None)
    assert bounds(instance.polygons or ()) == [(40, 10, 140, 50)]


def test_united_polygons_keep_their_holes_and_drop_what_has_no_area() -> None:
    ring = (square(0, 0, 30, 30), square(10, 10, 20, 20))
    united = unite_rings([ring, (square(25, 0, 60, 30), ((1.0, 1.0), (2.0, 2.0)))])
    assert bounds(united) == [(0, 0, 60, 30), (10, 10, 20, 20)]
    assert unite_rings([()]) == ()


def test_the_masks_of_an_object_across_a_seam_are_united() -> None:
    def instance(x1: int, x2: int) -> Instance:
        mask = np.zeros((100, 180), dtype=np.bool_)
        mask[10:50, x1:x2] = True
        return Instance((x1, 10, x2, 50), "a", 0.5, None, encode_mask(mask))

    views = [
        View(view, InstancesResult(found, True))
        for view, found in (
            (WHOLE, ()),
            (LEFT, (instance(40, 100),)),
            (RIGHT, (instance(80, 140),)),
        )
    ]
    result = merge("instance_segmentation", views, SIZE_WH).result
    assert isinstance(result, InstancesResult)
    (united,) = result.instances
    assert united.mask is not None
    assert united.polygons is None
    assert decode_mask(united.mask).sum() == 40 * 100


def line(text: str, x1: float, x2: float, y: float = 10, score: float = 0.5) -> TextRegion:
    return TextRegion(((x1, y), (x2, y + 1), (x2, y + 11), (x1, y + 10)), text, score)


def read(
    whole: list[TextRegion], left: list[TextRegion], right: list[TextRegion], task: str
) -> Merged:
    found = zip((WHOLE, LEFT, RIGHT), (whole, left, right), strict=True)
    views = [View(view, TextRegionsResult(tuple(items), True)) for view, items in found]
    return merge(task, views, SIZE_WH)


def test_a_line_across_a_seam_is_one_line_with_the_corners_of_both_ends() -> None:
    merged = read(
        [], [line("the quick br", 10, 99)], [line("ick brown fox", 81, 170)], "ocr_with_regions"
    )
    expected = line("the quick brown fox", 10, 170)
    assert merged == Merged(TextRegionsResult((expected,), True), 1)


def test_a_word_that_two_tiles_saw_is_written_once_in_reading_order() -> None:
    left = [line("below", 10, 40, 60), line("word", 84, 96, 10, 0.9), line("first", 10, 40)]
    right = [line("word", 84, 97), line("last", 120, 150)]
    assert read([], left, right, "ocr") == Merged(TextResult("first word last\nbelow", True), 1)


def test_the_better_reading_of_a_line_is_kept_also_if_it_is_joined() -> None:
    parts = [line("the quick br", 10, 99)], [line("ick brown fox", 81, 170)]
    invented = line("che qvick bnown", 10, 170, score=0.2)
    assert read([invented], *parts, "ocr").result == TextResult("the quick brown fox", True)
    moved = line("che qvick bnown", 8, 168, score=0.2)
    assert read([moved], *parts, "ocr").result == TextResult("the quick brown fox", True)
    sure = line("the quick brown fax", 10, 170, score=0.9)
    assert read([sure], *parts, "ocr").result == TextResult("the quick brown fax", True)


def test_text_without_places_is_merged_row_by_row() -> None:
    texts = {WHOLE: "", LEFT: "one two", RIGHT: "two three"}
    views = [View(view, TextResult(text, True)) for view, text in texts.items()]
    assert merge("ocr", views, SIZE_WH) == Merged(TextResult("one two three", True), 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda is_parsed: DetectionsResult((), is_parsed),
        lambda is_parsed: InstancesResult((), is_parsed),
        lambda is_parsed: TextRegionsResult((), is_parsed),
        lambda is_parsed: TextResult("", is_parsed),
    ],
)
def test_a_result_is_parsed_if_that_of_every_view_is(
    make: Callable[[bool], DetectionsResult | InstancesResult | TextRegionsResult | TextResult],
) -> None:
    views = [View(WHOLE, make(True)), View(LEFT, make(False))]
    assert not merge("object_detection", views, SIZE_WH).result.is_parsed
    assert merge("object_detection", views[:1], SIZE_WH).result == make(True)


WHOLE_WH = (640, 480)
CROP = (100, 50, 140, 90)
QUAD = ((0.0, 0.0), (4.0, 0.0), (4.0, 3.0), (0.0, 3.0))


def test_boxes_rings_and_quads_come_back_in_pixels_of_the_whole() -> None:
    detections = DetectionsResult((Detection((1.0, 2.0, 3.5, 4.0), "a", 0.5),), True)
    assert placed(detections, CROP, WHOLE_WH) == DetectionsResult(
        (Detection((101.0, 52.0, 103.5, 54.0), "a", 0.5),), True
    )
    instances = InstancesResult(
        (Instance((1.0, 2.0, 3.0, 4.0), "a", 0.5, (((1.0, 2.0), (3.0, 2.0), (3.0, 4.0)),), None),),
        True,
    )
    (instance,) = placed(instances, CROP, WHOLE_WH).instances  # type: ignore[union-attr]
    assert instance.polygons == (((101.0, 52.0), (103.0, 52.0), (103.0, 54.0)),)
    regions = TextRegionsResult((TextRegion(QUAD, "a", 0.5),), True)
    (region,) = placed(regions, CROP, WHOLE_WH).text_regions  # type: ignore[union-attr]
    assert region.quad == ((100.0, 50.0), (104.0, 50.0), (104.0, 53.0), (100.0, 53.0))
    assert placed(TextResult("a", True), CROP, WHOLE_WH) == TextResult("a", True)


@pytest.mark.parametrize(
    "part",
    [
        np.s_[5:7, 10:30],
        np.s_[:, 3:9],  # runs that fill their columns, and touch each other
        np.s_[0:0, 0:0],
        np.s_[::2, ::3],
    ],
)
def test_a_mask_comes_back_as_a_mask_of_the_whole(part: tuple[slice, slice]) -> None:
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[part] = True
    instances = InstancesResult(
        (Instance((0.0, 0.0, 1.0, 1.0), "a", 0.5, None, encode_mask(mask)),), True
    )
    (instance,) = placed(instances, CROP, WHOLE_WH).instances  # type: ignore[union-attr]
    assert instance.mask is not None
    whole = decode_mask(instance.mask)
    assert whole.shape == (480, 640)
    assert np.array_equal(whole[50:90, 100:140], mask)
    assert whole.sum() == mask.sum()
