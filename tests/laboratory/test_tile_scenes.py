"""Scenes for measurements of tiles: where their shapes are, and how large."""

from export.scenes.geometry import box_xyxy
from laboratory.tile_scenes import scenes, scenes_of_all_sizes

SIZE_WH = (1000, 600)


def test_shapes_have_all_sizes_and_are_within_the_image() -> None:
    shares: list[float] = []
    for scene in scenes_of_all_sizes(20):
        side_px = scene.image.width
        assert 1 <= len(scene.objects) <= 4
        for drawn in scene.objects:
            assert min(box_xyxy(drawn)) > 0
            assert max(box_xyxy(drawn)) < side_px
            shares.append(2 * drawn.radius_px / side_px)
    assert min(shares) < 0.05
    assert max(shares) > 0.25


def test_pairs_are_side_by_side_and_do_not_touch() -> None:
    (scene,) = scenes("pairs", 1, size_wh=SIZE_WH)
    first, second = scene.objects[:2]
    distance = abs(first.center_xy[0] - second.center_xy[0])
    distance += abs(first.center_xy[1] - second.center_xy[1])
    assert distance == first.radius_px + second.radius_px + 6


def test_another_seed_gives_another_image() -> None:
    (first,) = scenes("40 px", 1, size_wh=SIZE_WH)
    (same,) = scenes("40 px", 1, size_wh=SIZE_WH)
    (other,) = scenes("40 px", 1, seed=1, size_wh=SIZE_WH)
    assert first.data == same.data
    assert first.objects != other.objects
