"""Images unlike the labelled ones: noticed, in the part where they are."""

import numpy as np

from diptych_client.evaluation.annotation.shift import COLOURS, Appearance, find_shift


def images(
    seed: int, num: int, folder: str, shift: float = 0.0, size_px: float = 384.0
) -> list[Appearance]:
    """Return images with a constant, a shifted, and a plain and a counted number."""
    rng = np.random.default_rng(seed)
    appearances = []
    for index in range(num):
        groups = {
            "size": (size_px,),
            "sharpness": (rng.normal(shift),),
            "answers": (rng.normal(), float(rng.integers(0, 4))),
        }
        appearances.append(Appearance(f"{folder}/{index}.jpg", size_px, groups))
    return appearances


def test_equal_images_are_rarely_told_apart() -> None:
    appearances = [find_shift(images(n, 50, "a"), images(n + 500, 40, "b")) for n in range(20)]
    assert sum(shift is not None for shift in appearances) <= 2


def test_difference_everywhere_leaves_nothing() -> None:
    shift = find_shift(images(0, 60, "labelled"), images(1, 40, "new", 4.0))
    assert shift is not None
    assert (shift.most, shift.parts) == ("sharpness", ())
    assert shift.has(images(2, 1, "any")[0])
    names = "new/0.jpg, new/1.jpg, new/2.jpg, new/3.jpg, new/4.jpg"
    assert shift.sentence().endswith(f"nothing is accepted; label some of them, such as {names}")


def test_differing_folder_is_left_out() -> None:
    others = [*images(1, 60, "day"), *images(2, 20, "night", 4.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert [(part.name, part.num_images) for part in shift.parts] == [("folder night", 20)]
    assert shift.has(images(3, 1, "night")[0])
    assert not shift.has(images(3, 1, "day")[0])
    assert "folder night (20 sampled images, such as night/0.jpg, " in shift.sentence()
    again = find_shift(images(0, 90, "night"), others)  # folders of two places with one name
    assert again is not None
    assert again.parts == shift.parts
    few = [*images(1, 60, "day"), *images(2, 7, "night", 4.0)]
    assert find_shift(images(0, 90, "labelled"), few) is None


def test_folder_of_a_labelled_kind_is_alike() -> None:
    """Folders differ from each other, but none from the labelled images of its kind."""
    labelled = [*images(0, 60, "labelled"), *images(1, 30, "labelled", 4.0)]
    others = [*images(2, 40, "day"), *images(3, 20, "night", 4.0)]
    assert find_shift(labelled, others) is None
    new = images(4, 20, "fog", -4.0)
    shift = find_shift(labelled, [*others, *new])
    assert shift is not None
    assert [part.name for part in shift.parts] == ["folder fog"]


def test_differing_size_is_left_out() -> None:
    others = [*images(1, 60, "all"), *images(2, 20, "all", size_px=22.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert [part.name for part in shift.parts] == ["images of about 16 px"]
    assert shift.has(images(3, 1, "all", size_px=20.0)[0])
    assert not shift.has(images(3, 1, "all", size_px=400.0)[0])


def test_differing_cluster_is_left_out() -> None:
    others = [*images(1, 60, "all"), *images(2, 25, "all", 6.0)]
    shift = find_shift(images(0, 90, "labelled"), others)
    assert shift is not None
    assert shift.parts
    assert all(part.name.startswith("cluster ") for part in shift.parts)
    are_left_out = [shift.has(image) for image in images(3, 40, "all", 6.0)]
    are_kept = [not shift.has(image) for image in images(3, 40, "all")]
    assert np.mean(are_left_out) > 0.9
    assert np.mean(are_kept) > 0.9


def coloured(seed: int, num: int, folder: str, first: int) -> list[Appearance]:
    """Return images that each have one of six colours, from the first on."""
    rng = np.random.default_rng(seed)
    appearances = []
    for index, colour in enumerate(rng.integers(first, first + 6, num).tolist()):
        shares = np.eye(12)[colour].tolist()
        groups = {"answers": (rng.normal(),), COLOURS: tuple(shares)}
        appearances.append(Appearance(f"{folder}/{index}.jpg", 384.0, groups))
    return appearances


def test_small_folder_of_other_colours_is_left_out() -> None:
    others = [*coloured(1, 30, "day", 0), *coloured(2, 10, "tinted", 6)]
    shift = find_shift(coloured(0, 60, "labelled", 0), others)
    assert shift is not None
    assert shift.most == COLOURS
    assert [part.name for part in shift.parts] == ["folder tinted"]


def test_small_folder_between_others_is_left_out() -> None:
    labelled = [*images(0, 30, "labelled", -3.0), *images(1, 30, "labelled", 3.0)]
    others = [*images(2, 15, "day", -3.0), *images(3, 15, "day", 3.0), *images(4, 10, "fog")]
    shift = find_shift(labelled, others)
    assert shift is not None
    assert [part.name for part in shift.parts] == ["folder fog"]
