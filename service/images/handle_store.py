"""The folder of stored images. Any number of gateways of one host may share it.

    secret         the key of the ids
    lock           held while images are added and evicted
    OWNER/NAME     width and height, 4 bytes each, and the file of an image; its time of change is
                   when it was sent, that of access its last use
    OWNER/NAME.N   an image that is being written

OWNER identifies an API key by its hash. An image is written beside its place and renamed: a process
that is killed leaves a whole image or none. Above a limit the key that holds the most bytes loses
the image that it has not used for the longest time. All calls block.
"""

import asyncio
import fcntl
import logging
import os
import secrets
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from service.errors import ImageExpired, NotFound, NotReady, PayloadTooLarge
from service.images.decoding import in_thread
from service.images.inputs import HandleIds, ImageHandle
from service.settings import BYTES_PER_MB, Settings, SettingsError, is_store_url, variable
from tasks.errors import shown

logger = logging.getLogger(__name__)

SIZE = struct.Struct(">II")  # width, height
SECRET_BYTES = 32
_REMOVE_EVERY_S = 60.0
_ABANDONED_S = 600  # a write ends long before


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits on stored images."""

    max_bytes: int
    max_bytes_of_key: int
    max_images: int
    kept_s: int


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A stored image, without its bytes."""

    id: str
    num_bytes: int
    size_wh: tuple[int, int]  # px, upright
    expires_at: int  # seconds of the epoch


class ImageStore(Protocol):
    """Images of API keys, by their ids: a folder of one host, or a store of several."""

    def add(self, owner: str, data: bytes, size_wh: tuple[int, int]) -> StoredImage: ...

    def describe(self, owner: str, handle: ImageHandle) -> StoredImage: ...

    def read(self, owner: str, handle: ImageHandle) -> bytes: ...

    def remove(self, owner: str, handle: ImageHandle) -> None: ...

    async def remove_regularly(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    owner: str
    num_bytes: int
    used_s: float


class HandleStore:
    """Images of API keys in a folder, by their ids."""

    def __init__(
        self, folder: Path, limits: StoreLimits, now: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._now = now
        self._ids = HandleIds(b"")

    def prepare(self) -> None:
        """Make the folder and its secret, readable for this user alone.

        Raise `SettingsError` if it cannot be written.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._folder / "secret"
            mine = self._written(path, secrets.token_bytes(SECRET_BYTES))
            with suppress(FileExistsError):  # another gateway was first
                os.link(mine, path)
            mine.unlink()
            self._ids = HandleIds(path.read_bytes())
        except OSError as error:
            raise SettingsError(
                f"{variable('images_folder')}={str(self._folder)!r} cannot be written: {error}"
            ) from error

    def add(self, owner: str, data: bytes, size_wh: tuple[int, int]) -> StoredImage:
        """Store an image for an API key, from now for the whole time.

        Raise `PayloadTooLarge` or `NotReady`.
        """
        check_size(self._limits, data)
        handle = ImageHandle(self._ids.make(owner, data))
        path = self._path(owner, handle)
        with _disk_errors():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            written = self._written(path, SIZE.pack(*size_wh), data)
            os.utime(written, (self._now(), self._now()))
            with self._locked():
                written.rename(path)
                self.make_room(path)
        return self.describe(owner, handle)

    def describe(self, owner: str, handle: ImageHandle) -> StoredImage:
        """Return an image without its bytes; raise `NotFound`, `ImageExpired` or `NotReady`."""
        with self._opened(owner, handle) as file:
            stat = os.fstat(file.fileno())
            width, height = SIZE.unpack(file.read(SIZE.size))
        expires_at = int(stat.st_mtime) + self._limits.kept_s
        return StoredImage(handle.text, stat.st_size - SIZE.size, (width, height), expires_at)

    def read(self, owner: str, handle: ImageHandle) -> bytes:
        """Return the file of an image; raise `NotFound`, `ImageExpired` or `NotReady`."""
        with self._opened(owner, handle) as file:
            stat = os.fstat(file.fileno())
            os.utime(file.fileno(), (self._now(), stat.st_mtime))
            file.seek(SIZE.size)
            return file.read()

    def remove(self, owner: str, handle: ImageHandle) -> None:
        """Remove an image; raise `NotFound`, `ImageExpired` or `NotReady`."""
        with self._opened(owner, handle):
            self._path(owner, handle).unlink(missing_ok=True)

    def remove_expired(self) -> None:
        """Remove images that have expired, and files of killed writers."""
        with _disk_errors():
            for _ in self._entries():
                pass

    async def remove_regularly(self) -> None:
        """Remove expired images once a minute until cancelled."""
        while True:
            with suppress(NotReady):  # it has been logged
                await in_thread(self.remove_expired)
            await asyncio.sleep(_REMOVE_EVERY_S)

    def _path(self, owner: str, handle: ImageHandle) -> Path:
        return self._folder / owner / name_of(self._ids, owner, handle)

    @contextmanager
    def _opened(self, owner: str, handle: ImageHandle) -> Iterator[BinaryIO]:
        """Open the file of an image, which stays readable if it is evicted."""
        path = self._path(owner, handle)
        with _disk_errors():
            try:
                file = path.open("rb")
            except FileNotFoundError:
                raise gone(handle) from None
            with file:
                if os.fstat(file.fileno()).st_mtime + self._limits.kept_s <= self._now():
                    raise gone(handle)
                yield file

    def _written(self, path: Path, *pieces: bytes) -> Path:
        """Write a file beside the place of `path`, durably."""
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("a") as file:  # closing it unlocks
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def make_room(self, added: Path) -> None:
        """Remove expired images, and others until all limits hold, `added` last."""
        by_owner: dict[str, list[_Entry]] = defaultdict(list)
        for entry in self._entries():
            by_owner[entry.owner].append(entry)
        num_bytes: dict[str, int] = {}
        for owner, entries in by_owner.items():
            # the next to go is at the end
            entries.sort(key=lambda entry: (entry.path == str(added), entry.used_s), reverse=True)
            num_bytes[owner] = sum(entry.num_bytes for entry in entries)
        while num_bytes:
            largest = max(num_bytes, key=lambda owner: (num_bytes[owner], len(by_owner[owner])))
            num_images = sum(map(len, by_owner.values()))
            if (
                num_bytes[largest] <= self._limits.max_bytes_of_key
                and sum(num_bytes.values()) <= self._limits.max_bytes
                and num_images <= self._limits.max_images
            ):
                return
            entry = by_owner[largest].pop()
            num_bytes[largest] -= entry.num_bytes
            Path(entry.path).unlink(missing_ok=True)

    def _entries(self) -> Iterator[_Entry]:
        """Yield the images that are kept; remove expired ones and those of killed writers."""
        for owner in os.scandir(self._folder):
            if not owner.is_dir():
                continue
            for file in os.scandir(owner.path):
                with suppress(FileNotFoundError):  # just removed
                    stat = file.stat()
                    is_part = "." in file.name
                    kept_s = _ABANDONED_S if is_part else self._limits.kept_s
                    if stat.st_mtime + kept_s <= self._now():
                        os.unlink(file.path)
                    elif not is_part:
                        yield _Entry(file.path, owner.name, stat.st_size, stat.st_atime)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise `NotReady` for an error of the disk, such as a full one."""
    try:
        yield
    except OSError as error:
        logger.error("the folder of stored images fails: %s", error)
        message = f"the disk of stored images fails: {error.strerror}; send the image itself"
        raise NotReady(message) from error


def image_store(values: Settings) -> ImageStore | None:
    """Return the store of images, or None if it is disabled; raise `SettingsError`."""
    place = values.images_folder
    if place is None or not values.images_mb:
        return None
    max_bytes = values.images_mb * BYTES_PER_MB
    max_bytes_of_key = values.images_mb_per_key * BYTES_PER_MB or max_bytes
    limits = StoreLimits(max_bytes, max_bytes_of_key, values.max_images, values.images_kept_s)
    if is_store_url(place):
        from service.images.valkey_images import ValkeyImages  # imports the store's client

        return ValkeyImages(place, limits)
    store = HandleStore(Path(place), limits)
    store.prepare()
    return store


def stored(images: ImageStore | None) -> ImageStore:
    """Return the store; raise `NotFound` if it is disabled."""
    if images is None:
        raise NotFound("this service stores no images; send the image itself", "image")
    return images


def check_size(limits: StoreLimits, data: bytes) -> None:
    """Raise `PayloadTooLarge` for an image that is larger than all images of a key may be."""
    allowed = min(limits.max_bytes, limits.max_bytes_of_key)
    if len(data) > allowed:
        message = f"the image has {len(data)} bytes; at most {allowed} are stored for a key"
        raise PayloadTooLarge(message, "image")


def name_of(ids: HandleIds, owner: str, handle: ImageHandle) -> str:
    """Return the name in an id of an API key; raise `NotFound` for any other id."""
    name = ids.name(owner, handle)
    if name is None:
        raise NotFound(f"no image {shown(handle.text)} of this API key", "image")
    return name


def gone(handle: ImageHandle) -> ImageExpired:
    message = f"the image {handle.text} has expired, or was evicted or deleted; send it again"
    return ImageExpired(message, "image")
