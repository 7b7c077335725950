"""Stored images: bounded for all and for a key, shared by processes, whole after a kill."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import NotReady, ServiceError
from service.images.handle_store import HandleStore, StoreLimits, image_store
from service.images.inputs import ImageHandle
from service.settings import Settings, SettingsError
from tests.support.api_keys import FakeClock

KEPT_S = 100
SIZE_WH = (640, 480)
LIMITS = StoreLimits(10_000, 100, KEPT_S)


def stored_of(images: HandleStore, owner: str, *handles: ImageHandle) -> list[bool]:
    """Return for each image whether it is there."""

    def is_there(handle: ImageHandle) -> bool:
        try:
            images.describe(owner, handle)
        except ServiceError as error:
            return error.code != "image_expired"
        return True

    return list(map(is_there, handles))


def added(images: HandleStore, owner: str, data: bytes) -> ImageHandle:
    return ImageHandle(images.add(owner, data, SIZE_WH).id)


Open = Callable[..., HandleStore]  # with the limits that are not the usual


@pytest.fixture
def open_store(tmp_path: Path) -> Open:
    """Return what opens the store of a folder, which others may have opened."""
    return lambda **limits: HandleStore(tmp_path / "images", replace(LIMITS, **limits))


def test_stored_image_is_read(open_store: Open) -> None:
    first = open_store()
    second = open_store()
    before_s = int(time.time())
    stored = first.add("one", b"\0image\xff", SIZE_WH)
    handle = ImageHandle(stored.id)
    assert second.read("one", handle) == b"\0image\xff"
    assert (stored.bytes, stored.width, stored.height) == (7, *SIZE_WH)
    assert before_s + KEPT_S - 1 <= stored.expires_at <= time.time() + KEPT_S
    assert second.describe("one", handle) == stored
    assert first.add("one", b"\0image\xff", SIZE_WH).id == stored.id
    for call in (first.read, first.describe, first.remove):
        with pytest.raises(ServiceError, match="of this API key"):
            call("two", handle)
    second.remove("one", handle)
    for call in (first.read, first.describe, first.remove):
        with pytest.raises(ServiceError, match="send it again"):
            call("one", handle)


def test_oldest_image_is_evicted(open_store: Open) -> None:
    images = open_store(max_bytes=400)
    handles = [added(images, "one", bytes([number]) * 92) for number in range(3)]
    other = added(images, "two", b"2" * 92)
    added(images, "one", bytes([0]) * 92)  # again
    handles.append(added(images, "one", b"3" * 92))
    assert stored_of(images, "one", *handles) == [True, False, True, True]
    assert stored_of(images, "two", other) == [True]
    images.remove("two", other)
    with pytest.raises(ServiceError, match="at most 392 are stored"):
        images.add("one", bytes(393), SIZE_WH)
    assert images.add("one", bytes(392), SIZE_WH).bytes == 392


@pytest.mark.parametrize("limit", [{"max_bytes": 500}, {"max_images": 5}])
def test_small_key_loses_nothing(open_store: Open, limit: dict[str, int]) -> None:
    images = open_store(**limit)
    few = [added(images, "few", bytes([number]) * 92) for number in range(2)]
    many = [added(images, "many", bytes([number]) * 92) for number in range(10)]
    assert stored_of(images, "few", *few) == [True, True]
    assert stored_of(images, "many", *many) == [False] * 7 + [True] * 3


def test_many_small_images_evict_no_large_one(open_store: Open) -> None:
    images = open_store(max_images=5)
    large = added(images, "one", bytes(5_000))
    small = [added(images, "two", bytes([number])) for number in range(8)]
    assert stored_of(images, "one", large) == [True]
    assert stored_of(images, "two", *small) == [False] * 4 + [True] * 4


def test_image_of_the_largest_key_is_evicted(open_store: Open) -> None:
    images = open_store(max_bytes=300)
    handles = {owner: added(images, owner, bytes(92)) for owner in ("one", "two")}
    with pytest.raises(ServiceError, match="was evicted"):
        images.add("three", bytes(192), SIZE_WH)  # its only one
    assert [stored_of(images, *item) for item in handles.items()] == [[True], [True]]


def test_removed_image_makes_room(open_store: Open) -> None:
    images = open_store(max_images=2)
    handles = [added(images, "one", bytes([number])) for number in range(3)]
    assert stored_of(images, "one", *handles) == [False, True, True]
    images.remove("one", handles[1])
    handles.append(added(images, "one", b"last"))
    assert stored_of(images, "one", *handles) == [False, False, True, True]


def test_image_of_a_folder_expires(tmp_path: Path) -> None:
    clock = FakeClock()
    images = HandleStore(tmp_path / "images", LIMITS, clock)
    first = images.add("one", b"image", SIZE_WH)
    clock.now_s += 10
    again = images.add("one", b"image", SIZE_WH)
    assert (again.id, again.expires_at) == (first.id, first.expires_at + 10)
    assert rows(tmp_path / "images") == [13]
    handle = ImageHandle(first.id)
    clock.now_s += KEPT_S - 1
    assert images.read("one", handle) == b"image"
    clock.now_s += 1
    for call in (images.describe, images.read, images.remove):
        with pytest.raises(ServiceError, match="send it again"):
            call("one", handle)
    images.remove_expired()
    assert rows(tmp_path / "images") == []
    assert os.stat(tmp_path / "images").st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "images" / "images.sqlite3").st_mode & 0o777 == 0o600


def rows(folder: Path) -> list[int]:
    """Return the numbers of bytes of the images; check the counts."""
    with closing(sqlite3.connect(folder / "images.sqlite3", isolation_level=None)) as db:
        db.execute("BEGIN")  # one snapshot: another process may write between the queries
        sizes = [size for (size,) in db.execute("SELECT num_bytes FROM images")]
        counts = db.execute("SELECT sum(num_images), sum(num_bytes) FROM owners").fetchone()
    assert counts == ((len(sizes), sum(sizes)) if sizes else (None, None))
    return sizes


def remove_folder(database: Path) -> None:
    shutil.rmtree(database.parent)


def overwrite(database: Path) -> None:
    database.write_bytes(b"damaged" * 10_000)


def zero_pages(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(bytes(database.stat().st_size))


@pytest.mark.parametrize("damage", [Path.unlink, remove_folder, overwrite, zero_pages])
def test_lost_database_is_made_again(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "images"
    first = HandleStore(folder, LIMITS)
    second = HandleStore(folder, LIMITS)
    lost = added(first, "one", b"lost")
    with closing(sqlite3.connect(folder / "images.sqlite3")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(folder / "images.sqlite3")
    handle = added(first, "one", b"image")
    for images in (second, first, HandleStore(folder, LIMITS)):
        assert stored_of(images, "one", lost, handle) == [False, True]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2  # of two gateways
    assert rows(folder) == [13]
    damage(folder / "images.sqlite3")
    HandleStore(folder, LIMITS)  # starts, with a secret of its own
    assert stored_of(first, "one", added(first, "one", b"image")) == [True]


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}


@pytest.mark.parametrize("has_database", [False, True])
def test_existing_folder_becomes_private(tmp_path: Path, has_database: bool) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    if has_database:
        HandleStore(folder, LIMITS).add("a", b"image", SIZE_WH)
        for path in folder.iterdir():
            path.chmod(0o644)
    folder.chmod(0o755)
    store = HandleStore(folder, LIMITS)
    store.add("b", b"image", SIZE_WH)
    assert modes(folder) == {0o700, 0o600}


def test_open_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    tmp_path.chmod(0o750)
    with pytest.raises(SettingsError, match=r"mode 750\), and it holds other files; run chmod 700"):
        HandleStore(tmp_path, LIMITS)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750
    tmp_path.chmod(0o700)
    HandleStore(tmp_path, LIMITS)


def test_disk_error_is_temporary(tmp_path: Path) -> None:
    images = HandleStore(tmp_path / "images", LIMITS)
    (tmp_path / "images").rename(tmp_path / "away")
    (tmp_path / "images").touch()
    with pytest.raises(NotReady, match="the disk of stored images fails"):
        images.add("one", b"image", SIZE_WH)
    with pytest.raises(SettingsError, match="DIPTYCH_IMAGES_FOLDER"):
        HandleStore(tmp_path / "images", LIMITS)
    (tmp_path / "images").unlink()
    assert stored_of(images, "one", added(images, "one", b"image")) == [True]


def test_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    images = image_store(Settings())
    assert isinstance(images, HandleStore)
    assert rows(tmp_path / "images") == []
    assert image_store(Settings(images_mb=0)) is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "file"))
    assert image_store(Settings()) is None  # a read-only container serves without
    assert "no images are stored" in caplog.text


def test_image_that_waited_is_the_newest(tmp_path: Path) -> None:
    clock = FakeClock()
    images = HandleStore(tmp_path, replace(LIMITS, max_images=1), clock)
    database = tmp_path / "images.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor() as pool:
            late = pool.submit(images.add, "one", b"late", SIZE_WH)
            with pytest.raises(TimeoutError):
                late.result(0.2)
            clock.now_s += 10
            other.execute("INSERT INTO images VALUES ('one', 'early', ?, 1, x'00')", [clock.now_s])
            other.execute("COMMIT")
            assert stored_of(images, "one", ImageHandle(late.result().id)) == [True]


PROCESS_LIMITS = StoreLimits(5_000, 40, 3600)


def fill(folder: Path, seed: int) -> list[str]:
    """Store images until killed, or a hundred; return the ids."""
    images = HandleStore(folder, PROCESS_LIMITS)
    return [images.add("one", bytes([seed, number]) * 46, SIZE_WH).id for number in range(100)]


def test_processes_share_the_limits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        runs = list(pool.map(fill, [tmp_path] * 2, range(2)))
    images = HandleStore(tmp_path, PROCESS_LIMITS)
    assert len(rows(tmp_path)) == 40
    known = [stored_of(images, "one", *map(ImageHandle, run)) for run in runs]
    assert sum(map(sum, known)) == 40  # the ids of both processes are of one secret


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=fill, args=(tmp_path, 0))
    process.start()
    HandleStore(tmp_path, PROCESS_LIMITS)
    while len(rows(tmp_path)) < 5:
        process.join(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert set(rows(tmp_path)) == {100}
    fill(tmp_path, 1)  # the lock is free
