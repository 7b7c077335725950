"""Folders, patterns and archives become files of a folder, within limits."""

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from diptych_client.datasets import inputs
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.inputs import Opened, Opening, Problems, find_images, open_images
from diptych_client.datasets.long_runs import RunError
from tests.support.evaluations import CLASSES, OBJECTS, write_coco, write_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos")
    return tmp_path / "photos"


def opened(tmp_path: Path, *paths: object) -> Opened:
    return open_images(list(map(str, paths)), Opening(tmp_path / "work", Problems()))


def names(tmp_path: Path, *paths: object) -> list[str]:
    return [image.name for image in opened(tmp_path, *paths).images()[1]]


def test_folder_pattern_and_files_are_images(photos: Path, tmp_path: Path) -> None:
    assert names(tmp_path, photos) == list(OBJECTS)
    assert names(tmp_path, f"{photos}/*.png") == list(OBJECTS)
    assert names(tmp_path, photos / "b.png", photos / "a.png") == ["b.png", "a.png"]
    (photos / "a.png").rename(photos / "a.txt")
    assert names(tmp_path, photos / "a.txt", photos / "b.png") == ["a.txt", "b.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "none does not exist"),
        ("x*.png", "no file matches it as a pattern"),
        ("broken.zip", "does not exist"),
        ("notes.md", "contains no image"),
        ("damaged.zip", "is not a readable archive"),
        ("damaged.tar.gz", "is not a readable archive"),
    ],
)
def test_input_without_images_is_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    (tmp_path / "broken.zip").symlink_to("nowhere")
    for damaged in ("damaged.zip", "damaged.tar.gz"):
        (tmp_path / damaged).write_bytes(b"PK\3\4 no archive")
    with pytest.raises(RunError, match=message):
        names(tmp_path, tmp_path / name)


def packed(folder: Path, form: str = "zip") -> str:
    return shutil.make_archive(f"{folder}-packed", form, folder.parent, folder.name)


@pytest.mark.parametrize("form", ["zip", "gztar"])
def test_archive_is_read_as_its_folder(form: str, tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    for path in folder.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    unpacked = read_dataset(opened(tmp_path, packed(folder, form)).path)
    assert unpacked.classes == CLASSES
    assert unpacked.store.read(unpacked.images[0].image)
    assert {image.image.mtime_ns for image in unpacked.images} == {10**18}


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a\\..\\..\\outside.png"])
def test_member_outside_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(RunError, match="leads outside this folder"):
        opened(tmp_path, tmp_path / "x.zip")
    assert not (tmp_path / "outside.png").exists()


def test_links_and_other_files_are_not_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("run.sh"))
    assert not list(opened(tmp_path, tmp_path / "x.tar").path.rglob("*"))


def test_archive_leaves_hidden_files_out_and_remembers_others(tmp_path: Path, photos: Path) -> None:
    (photos / ".git").mkdir()
    for name in ("._a.png", ".git/x.png", "__MACOSX.json", "notes.docx"):
        (photos / name).write_bytes(b"1")
    archive = packed(photos)
    for _ in range(2):  # the second run unpacks nothing
        problems = Problems()
        folder = open_images([archive], Opening(tmp_path / "work", problems)).path
        assert {path.name for path in folder.rglob("*.*")} == set(OBJECTS)
        assert problems.counts == {".docx file left out": 1}
    assert [image.name for image in find_images(photos)] == sorted(OBJECTS)


@pytest.mark.parametrize("sizes", [[3_000_000, 1], [0, 0, 0]])
def test_bomb_is_refused_in_time(
    sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MIN_ARCHIVE_LIMIT_BYTES", 3_000_000)
    monkeypatch.setattr(inputs, "MAX_ARCHIVE_FILES", 2)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, size in enumerate(sizes):
            archive.writestr(f"{number}.json", bytes(size))
    with pytest.raises(RunError, match="holds more than 3,000,000 bytes or 2 files"):
        opened(tmp_path, tmp_path / "x.zip")
    assert len(list((tmp_path / "work").iterdir())) == len(sizes) - 1


def test_problems_are_counted_and_cut() -> None:
    problems = Problems()
    problems.add("x", "y" * 600, "left out")
    assert list(map(len, problems.lines)) == [500 + len("; left out")]
    with problems.leaving_out("row", "file"):
        raise KeyError("name")
    assert problems.summary() == "1 x left out, 1 x row left out"
    with pytest.raises(RunError, match=r"^x: y$"):
        Problems(is_strict=True).add("x", "y", "left out")


def test_source_that_changed_is_unpacked_again(tmp_path: Path, photos: Path) -> None:
    archive = packed(photos)
    for num_images in (len(OBJECTS), len(OBJECTS) - 1):
        assert len(names(tmp_path, archive)) == num_images
        (photos / "a.png").unlink(missing_ok=True)
        assert len(names(tmp_path, archive)) == num_images
        packed(photos)
