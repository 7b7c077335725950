"""Files of a folder that are labelled, and output folders that are allowed."""

from pathlib import Path

import pytest

from diptych_client.evaluation.job import check_folders
from diptych_client.inputs import find_images
from diptych_client.long_runs import RunError


def test_only_images_are_found_also_in_subfolders(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/b/d.webp", "e.jpeg", "notes.txt", "a/f.gif", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "folder.png").mkdir()
    images = find_images(tmp_path)
    assert [image.name for image in images] == ["a/b/d.webp", "a/c.png", "b.JPG", "e.jpeg"]
    assert {image.size_bytes for image in images} == {5}


@pytest.mark.parametrize("out", ["images", "images/out", "."])
def test_the_output_folder_may_neither_contain_the_images_nor_lie_among_them(
    tmp_path: Path, out: str
) -> None:
    with pytest.raises(RunError, match="must be outside the image folder"):
        check_folders(tmp_path / "images", tmp_path / out)


def test_sibling_folders_are_allowed(tmp_path: Path) -> None:
    check_folders(tmp_path / "images", tmp_path / "images-annotations")
