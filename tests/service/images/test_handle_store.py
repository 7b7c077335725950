"""Stored images: bounded for all and for a key, shared by processes, whole after a kill."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from service.errors import ImageExpired, NotFound, NotReady, PayloadTooLarge
from service.images.handle_store import HandleStore, ImageStore, StoreLimits, image_store
from service.images.inputs import ImageHandle
from service.images.valkey_images import ValkeyImages
from service.settings import Settings, SettingsError
from tests.support.valkey import Valkey, needs_valkey, running_valkey

KEPT_S = 100
SIZE_WH = (640, 480)


@dataclass
class Clock:
    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def store(
    folder: Path,
    clock: Callable[[], float],
    max_bytes: int = 10_000,
    max_of_key: int = 10_000,
    max_images: int = 100,
) -> HandleStore:
    made = HandleStore(folder, StoreLimits(max_bytes, max_of_key, max_images, KEPT_S), clock)
    made.prepare()
    return made


def kept(images: ImageStore, owner: str, *handles: ImageHandle) -> list[bool]:
    """Return for each image whether it is there."""

    def is_there(handle: ImageHandle) -> bool:
        try:
            images.describe(owner, handle)
        except ImageExpired:
            return False
        return True

    return list(map(is_there, handles))


def added(images: ImageStore, owner: str, data: bytes) -> ImageHandle:
    return ImageHandle(images.add(owner, data, SIZE_WH).id)


def test_stored_image_is_read(tmp_path: Path) -> None:
    clock = Clock()
    first = store(tmp_path / "images", clock)
    second = store(tmp_path / "images", clock)
    stored = first.add("one", b"image", SIZE_WH)
    handle = ImageHandle(stored.id)
    assert second.read("one", handle) == b"image"
    assert (stored.num_bytes, stored.size_wh, stored.expires_at) == (5, SIZE_WH, 1_000_000 + KEPT_S)
    assert second.describe("one", handle) == stored
    with pytest.raises(NotFound):
        second.read("two", handle)
    assert os.stat(tmp_path / "images").st_mode & 0o777 == 0o700


def test_same_bytes_are_stored_once(tmp_path: Path) -> None:
    clock = Clock()
    images = store(tmp_path, clock)
    first = images.add("one", b"image", SIZE_WH)
    clock.now_s += 10
    again = images.add("one", b"image", SIZE_WH)
    assert (again.id, again.expires_at) == (first.id, first.expires_at + 10)
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_an_image_expires_and_is_removed(tmp_path: Path) -> None:
    clock = Clock()
    images = store(tmp_path, clock)
    handle = added(images, "one", b"image")
    clock.now_s += KEPT_S
    for call in (images.describe, images.remove):
        with pytest.raises(ImageExpired, match="send it again"):
            call("one", handle)
    with pytest.raises(ImageExpired):
        images.read("one", handle)
    images.remove_expired()
    assert not list((tmp_path / "one").iterdir())


def test_a_removed_image_is_gone(tmp_path: Path) -> None:
    images = store(tmp_path, Clock())
    handle = added(images, "one", b"image")
    with pytest.raises(NotFound):
        images.remove("two", handle)
    images.remove("one", handle)
    with pytest.raises(ImageExpired):
        images.read("one", handle)


def test_least_used_image_is_evicted(tmp_path: Path) -> None:
    clock = Clock()
    images = store(tmp_path, clock, max_of_key=300)
    handles = []
    for number in range(3):
        handles.append(added(images, "one", bytes([number]) * 92))
        clock.now_s += 1
    other = added(images, "two", b"2" * 92)
    images.read("one", handles[0])
    clock.now_s += 1
    handles.append(added(images, "one", b"3" * 92))
    assert kept(images, "one", *handles) == [True, False, True, True]
    assert kept(images, "two", other) == [True]


@pytest.mark.parametrize("limit", [{"max_bytes": 500}, {"max_images": 5}])
def test_small_key_loses_nothing(tmp_path: Path, limit: dict[str, int]) -> None:
    clock = Clock()
    images = store(tmp_path, clock, **limit)
    few = [added(images, "few", bytes([number]) * 92) for number in range(2)]
    for number in range(10):
        clock.now_s += 1
        last = added(images, "many", bytes([number]) * 92)
    assert kept(images, "few", *few) == [True, True]
    assert kept(images, "many", last) == [True]
    assert len(list((tmp_path / "many").iterdir())) == 3


def test_image_above_a_limit(tmp_path: Path) -> None:
    images = store(tmp_path, Clock(), max_of_key=4)
    with pytest.raises(PayloadTooLarge, match="at most 4 are stored"):
        images.add("one", b"12345", SIZE_WH)


def test_disk_error_is_temporary(tmp_path: Path) -> None:
    images = store(tmp_path, Clock())
    (tmp_path / "one").touch()
    with pytest.raises(NotReady, match="the disk of stored images fails"):
        images.add("one", b"image", SIZE_WH)


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="DIPTYCH_IMAGES_FOLDER"):
        store(tmp_path / "file" / "images", Clock())


def test_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    clock = Clock()
    images = store(tmp_path, clock)
    added(images, "one", b"image")
    part = tmp_path / "one" / "0123.4567"
    part.write_bytes(b"ima")
    os.utime(part, (clock.now_s, clock.now_s))
    added(images, "two", b"other")
    assert part.exists()
    clock.now_s += 3600
    added(images, "two", b"another")
    assert not part.exists()


def fill(folder: Path, seed: int) -> list[str]:
    """Store images until killed, or a hundred; return the ids."""
    images = HandleStore(folder, StoreLimits(5_000, 5_000, 40, 3600))
    images.prepare()
    return [images.add("one", bytes([seed, number]) * 46, SIZE_WH).id for number in range(100)]


def test_processes_share_the_limits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        runs = list(pool.map(fill, [tmp_path] * 2, range(2)))
    images = store(tmp_path, time.time)
    left = [path for path in (tmp_path / "one").iterdir() if "." not in path.name]
    assert 0 < len(left) <= 40
    assert sum(path.stat().st_size for path in left) <= 5_000
    known = [kept(images, "one", *map(ImageHandle, run)) for run in runs]
    assert sum(map(sum, known)) == len(left)  # the ids of both processes are of one secret


def test_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=fill, args=(tmp_path, 0))
    process.start()
    owner = tmp_path / "one"
    while not owner.is_dir() or len(list(owner.iterdir())) < 5:
        process.join(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = [path for path in owner.iterdir() if "." not in path.name]
    assert all(path.stat().st_size == 100 for path in left)
    fill(tmp_path, 1)  # the lock is free


pytestmark = needs_valkey
LIMITS = StoreLimits(10_000, 10_000, 100, 1_000)
PREFIX = "diptych:images:"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def valkey(server: Valkey) -> Valkey:
    server.client.flushall()
    return server


def test_valkey_image_is_read(valkey: Valkey) -> None:
    first = ValkeyImages(valkey.url, LIMITS)
    second = ValkeyImages(valkey.url, LIMITS)
    stored = first.add("one", b"\0image\xff", SIZE_WH)
    handle = ImageHandle(stored.id)
    assert second.read("one", handle) == b"\0image\xff"
    assert (second.describe("one", handle), stored.num_bytes) == (stored, 7)
    assert first.add("one", b"\0image\xff", SIZE_WH).id == stored.id
    assert valkey.client.hgetall(f"{PREFIX}bytes") == {b"one": b"15"}
    with pytest.raises(NotFound):
        second.read("two", handle)
    second.remove("one", handle)
    for call in (first.read, first.describe, first.remove):
        with pytest.raises(ImageExpired, match="send it again"):
            call("one", handle)
    assert valkey.client.keys() == [f"{PREFIX}secret".encode()]


def test_valkey_evicts_the_least_used(valkey: Valkey) -> None:
    images = ValkeyImages(valkey.url, replace(LIMITS, max_bytes_of_key=300))
    handles = [added(images, "one", bytes([number]) * 92) for number in range(3)]
    other = added(images, "two", b"2" * 92)
    images.read("one", handles[0])
    handles.append(added(images, "one", b"3" * 92))
    assert kept(images, "one", *handles) == [True, False, True, True]
    assert kept(images, "two", other) == [True]
    with pytest.raises(PayloadTooLarge, match="at most 300"):
        images.add("one", bytes(301), SIZE_WH)


@pytest.mark.parametrize("limits", [replace(LIMITS, max_bytes=500), replace(LIMITS, max_images=5)])
def test_valkey_small_key_loses_nothing(valkey: Valkey, limits: StoreLimits) -> None:
    images = ValkeyImages(valkey.url, limits)
    few = [added(images, "few", bytes([number]) * 92) for number in range(2)]
    many = [added(images, "many", bytes([number]) * 92) for number in range(10)]
    assert kept(images, "few", *few) == [True, True]
    assert kept(images, "many", *many) == [False] * 7 + [True] * 3


def test_valkey_image_expires(valkey: Valkey) -> None:
    images = ValkeyImages(valkey.url, LIMITS)
    handle = added(images, "one", b"image")
    (image,) = valkey.client.keys(f"{PREFIX}image:*")
    assert 0 < valkey.client.ttl(image) <= LIMITS.kept_s
    valkey.client.delete(image)
    valkey.client.zadd(f"{PREFIX}expiry", {f"one/{handle.text[4:36]}": 1})
    assert kept(images, "one", handle) == [False]
    added(images, "two", b"image")
    assert valkey.client.hgetall(f"{PREFIX}bytes") == {b"two": b"13"}


def test_valkey_failures_are_temporary(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as valkey:
        images = image_store(Settings(images_folder=valkey.url))
        assert isinstance(images, ValkeyImages)
        handle = added(images, "one", b"image")
        valkey.client.flushall()
        with pytest.raises(NotFound):
            images.read("one", handle)
        assert kept(images, "one", added(images, "one", b"image")) == [True]
        valkey.kill()
        with pytest.raises(NotReady, match="send the image itself"):
            images.read("one", handle)


def test_valkey_url_is_checked() -> None:
    with pytest.raises(ValueError, match="it must be redis"):
        Settings(images_folder="redis://host:no")
