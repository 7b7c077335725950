"""Which files of a folder are labelled, and where what is written may lie."""

from pathlib import Path

import pytest

from client.annotate import AnnotationError, find_images, separate_folders


def test_images_are_found_in_folders_within_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/b/d.webp", "e.jpeg", "notes.txt", "a/f.gif", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "folder.png").mkdir()
    images = find_images(tmp_path)
    assert [image.name for image in images] == ["a/b/d.webp", "a/c.png", "b.JPG", "e.jpeg"]
    assert {image.size_bytes for image in images} == {5}


@pytest.mark.parametrize("out", ["images", "images/out", "."])
def test_what_is_written_may_not_lie_among_the_images_nor_around_them(tmp_path: Path, out: str) -> None:
    with pytest.raises(AnnotationError, match="must lie apart"):
        separate_folders(tmp_path / "images", tmp_path / out)


def test_folders_side_by_side_are_apart(tmp_path: Path) -> None:
    separate_folders(tmp_path / "images", tmp_path / "images-annotations")
