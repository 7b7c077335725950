import io
import tarfile
from itertools import chain
from operator import attrgetter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.filesystems import InputError
from offline.shards import Shard, digest_of, images_of, plan_shards

COLUMN = "image"


def read(shards: tuple[Shard, ...]) -> list[list[tuple[str, bytes]]]:
    contents: list[list[tuple[str, bytes]]] = []
    for shard in shards:
        contents.append([(image.key, image.read()) for image in images_of(shard)])
    return contents


def keys(shards: tuple[Shard, ...]) -> list[list[str]]:
    return [list(map(attrgetter("key"), images_of(shard))) for shard in shards]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, one of them in a sub-folder, and a text."""
    for name in ("e.png", "a.jpg", "deep/c.webp", "b.JPEG", "d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def write_table(path: Path, values: list[object], row_group_size: int = 100) -> Path:
    pq.write_table(
        pa.table({"id": range(len(values)), COLUMN: values}), path, row_group_size=row_group_size
    )
    return path


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    # a variable, not a literal
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_folder_is_sharded_by_path(folder: Path) -> None:
    shards = plan_shards([str(folder)], COLUMN, 2)
    names = ["a.jpg", "b.JPEG", "d.jpg", "deep/c.webp", "e.png"]
    paths = [str(folder / name) for name in names]
    assert keys(shards) == [paths[:2], paths[2:4], paths[4:]]
    assert [data.decode() for _, data in chain.from_iterable(read(shards))] == names


def test_file_of_two_inputs_is_taken_once(folder: Path) -> None:
    shards = plan_shards(
        [f"{folder}/*.jpg", str(folder / "d.jpg"), f"file://{folder}/**/*.webp"], COLUMN, 10
    )
    assert keys(shards) == [[str(folder / name) for name in ("a.jpg", "d.jpg", "deep/c.webp")]]


def test_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on the images and on the shard of each, not on how they are named."""

    def digest(path: Path | str, shard_size: int = 2) -> str:
        return digest_of(plan_shards([str(path)], COLUMN, shard_size))

    monkeypatch.chdir(folder)
    before = digest(folder)
    assert digest(".") == before
    assert digest(folder, 3) != before
    (folder / "f.png").write_bytes(b"")
    assert digest(folder) != before
    table = write_table(folder / "t.parquet", [b"1", b"2", b"3"])
    before = digest(table)
    assert digest(write_table(folder / "other.parquet", [b"1", b"2", b"3"])) != before
    assert digest(write_table(table, [b"1", b"2", b"3", b"4"])) != before


@pytest.mark.parametrize("row_group_size", [1, 3, 7, 100])
@pytest.mark.parametrize("shard_size", [1, 4, 5, 100])
def test_each_row_is_in_one_shard(tmp_path: Path, row_group_size: int, shard_size: int) -> None:
    table = write_table(tmp_path / "t.parquet", [b"%d" % row for row in range(23)], row_group_size)
    shards = plan_shards([str(table)], COLUMN, shard_size)
    expected = [(f"{table}#{row}", b"%d" % row) for row in range(23)]
    assert read(shards) == [
        expected[start : start + shard_size] for start in range(0, 23, shard_size)
    ]


def test_table_of_paths(folder: Path) -> None:
    table = write_table(folder / "t.parquet", ["a.jpg", str(folder / "deep" / "c.webp")])
    (shard,) = plan_shards([str(table)], COLUMN, 9)
    assert read((shard,)) == [
        [(str(folder / "a.jpg"), b"a.jpg"), (str(folder / "deep/c.webp"), b"deep/c.webp")]
    ]


def test_table_of_hugging_face(folder: Path) -> None:
    values: list[object] = [{"bytes": b"1", "path": "x"}, {"bytes": None, "path": "a.jpg"}, None]
    table = write_table(folder / "t.parquet", values)
    first, second, third = images_of(plan_shards([str(table)], COLUMN, 9)[0])
    assert (first.read(), second.read(), third.key) == (b"1", b"a.jpg", f"{table}#2")
    with pytest.raises(OSError, match="null"):
        third.read()


@pytest.mark.parametrize(
    ("name", "mode"), [("w.tar", "w"), ("w.tar.gz", "w:gz"), ("w.tgz", "w:gz")]
)
def test_archive_is_one_shard(tmp_path: Path, name: str, mode: str) -> None:
    members = {"1.jpg": b"one", "1.txt": b"a caption", "sub/2.png": b"two"}
    archive = write_tar(tmp_path / name, members, mode)
    assert read(plan_shards([str(tmp_path)], COLUMN, 1)) == [
        [(f"{archive}/1.jpg", b"one"), (f"{archive}/sub/2.png", b"two")]
    ]


# after the first image; in and after a header; in data
@pytest.mark.parametrize("num_bytes", [1536, 2000, 2048, 2500])
def test_truncated_archive_is_reported(tmp_path: Path, num_bytes: int) -> None:
    archive = write_tar(tmp_path / "w.tar", {"1.jpg": b"x" * 600, "2.jpg": b"y" * 600})
    archive.write_bytes(archive.read_bytes()[:num_bytes])
    first, second = images_of(plan_shards([str(archive)], COLUMN, 9)[0])
    assert (first.key, second.key) == (f"{archive}/1.jpg", str(archive))
    with pytest.raises(OSError, match="cannot be read to its end"):
        second.read()


def test_keys_of_a_store() -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/a/1.jpg": b"one", "/bucket/a/2.jpg": b"two", "/bucket/b.jpg": b"three"})
    shards = plan_shards(["memory://bucket/a"], COLUMN, 9)
    assert read(shards) == [
        [("memory://bucket/a/1.jpg", b"one"), ("memory://bucket/a/2.jpg", b"two")]
    ]
    assert keys(plan_shards(["memory://bucket/*.jpg"], COLUMN, 9)) == [["memory://bucket/b.jpg"]]


def test_bad_inputs_are_refused(folder: Path) -> None:
    table = write_table(folder / "t.parquet", [b"1"])
    for uri, message in {
        str(folder / "missing"): "no such file",
        str(folder / "notes.txt"): "endings .jpeg, .jpg, .png, .webp, .parquet",
        "nothing://bucket": "nothing",
    }.items():
        with pytest.raises(InputError, match=message):
            plan_shards([uri], COLUMN, 9)
    with pytest.raises(InputError, match=r"no column 'picture'; .* --column one of id, image"):
        plan_shards([str(table)], "picture", 9)
    table.write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"t\.parquet"):
        plan_shards([str(table)], COLUMN, 9)
