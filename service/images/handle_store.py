"""Stored images of API keys, by their ids: in a folder, or in a Redis or Valkey.

The folder, which any number of gateways of one host may share:

    secret         the key of the ids
    lock           held while images are added and evicted
    OWNER/NAME     width and height, 4 bytes each, and the file of an image; its time of change is
                   when it was sent
    OWNER/NAME.N   an image that is being written

An image is written beside its place and renamed: a process that is killed leaves a whole image or
none. In a store of several hosts all names begin with `diptych:images:`:

    image:OWNER/NAME    as the file above; expires by itself
    secret              the key of the ids; a store that has lost its data gets another
    facts               hash of OWNER/NAME to its number of bytes, and when it expires (ms)

OWNER identifies an API key by its hash. Above a limit the key that holds the most bytes loses the
image that it sent first. All calls block.
"""

import asyncio
import fcntl
import logging
import os
import secrets
import struct
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from service.admission.threads import STORING
from service.errors import NotReady, ServiceError
from service.images.inputs import HandleIds, ImageHandle
from service.settings import BYTES_PER_MB, Settings, SettingsError, is_store_url, variable
from tasks.errors import shown

logger = logging.getLogger(__name__)

StoredFile = tuple[bytes, int, int]  # its content or start, number of bytes, when it expires

_SIZE = struct.Struct(">II")  # width, height
_SECRET_BYTES = 32
_REMOVE_EVERY_S = 60.0
_ABANDONED_S = 600  # a write ends long before
_TIMEOUT_S = 2.0  # a call of a store, which may move a file of 20 MB
_MAX_CONNECTIONS = 4
_PREFIX = "diptych:images:"


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


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored image, as eviction sees it."""

    owner: str
    name: str
    num_bytes: int
    order: float  # by the time at which it was sent


class ImageStore(ABC):
    """Images of API keys, by their ids.

    Methods raise `not_found` for an id of another key, `image_expired` if the image is gone, and
    `NotReady` if the store fails.
    """

    failure: ClassVar[str]
    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits

    def add(self, owner: str, data: bytes, size_wh: tuple[int, int]) -> StoredImage:
        """Store an image for an API key, from now for the whole time; raise `payload_too_large`."""
        allowed = min(self.limits.max_bytes, self.limits.max_bytes_of_key) - _SIZE.size
        if len(data) > allowed:
            message = f"the image has {len(data)} bytes; at most {allowed} are stored for a key"
            raise ServiceError(message, "image", "payload_too_large")
        with self._errors():
            handle = ImageHandle(self._ids().make(owner, data))
            self._put(owner, self._name(owner, handle), _SIZE.pack(*size_wh) + data)
        return self.describe(owner, handle)

    def describe(self, owner: str, handle: ImageHandle) -> StoredImage:
        size, num_bytes, expires_at = self._existing(owner, handle, _SIZE.size)
        width, height = _SIZE.unpack(size)
        return StoredImage(handle.text, num_bytes - _SIZE.size, (width, height), expires_at)

    def read(self, owner: str, handle: ImageHandle) -> bytes:
        """Return the file of an image."""
        return self._existing(owner, handle)[0][_SIZE.size :]

    def remove(self, owner: str, handle: ImageHandle) -> None:
        self._existing(owner, handle, _SIZE.size)
        with self._errors():
            self._delete(owner, self._name(owner, handle))

    async def remove_regularly(self) -> None:
        """Remove expired images, and files of killed writers, once a minute until cancelled."""
        while True:
            with suppress(NotReady):  # it has been logged
                await STORING.run(self.remove_expired)
            await asyncio.sleep(_REMOVE_EVERY_S)

    def remove_expired(self) -> None:
        with self._errors():
            list(self._entries())

    def make_room(self) -> None:
        """Remove images until all limits hold."""
        entries = sorted(self._entries(), key=lambda entry: entry.order)
        num_bytes = Counter[str]()
        for entry in entries:
            num_bytes[entry.owner] += entry.num_bytes
        while entries:
            ((largest, most_bytes),) = num_bytes.most_common(1)
            if (
                most_bytes <= self.limits.max_bytes_of_key
                and num_bytes.total() <= self.limits.max_bytes
                and len(entries) <= self.limits.max_images
            ):
                return
            evicted = next(entry for entry in entries if entry.owner == largest)
            entries.remove(evicted)
            num_bytes[largest] -= evicted.num_bytes
            self._delete(largest, evicted.name)

    def _existing(self, owner: str, handle: ImageHandle, max_bytes: int = -1) -> StoredFile:
        with self._errors():
            file = self._get(owner, self._name(owner, handle), max_bytes)
        if file is None:
            message = f"the image {handle.text} has expired, or was evicted or deleted"
            raise ServiceError(f"{message}; send it again", "image", "image_expired")
        return file

    def _name(self, owner: str, handle: ImageHandle) -> str:
        name = self._ids().name(owner, handle)
        if name is None:
            message = f"no image {shown(handle.text)} of this API key"
            raise ServiceError(message, "image", "not_found")
        return name

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise `NotReady` for an error of the store, such as a full disk."""
        try:
            yield
        except self.failures as error:
            logger.error("stored images fail: %s", error)
            raise NotReady(f"{self.failure}; send the image itself") from error

    @abstractmethod
    def _ids(self) -> HandleIds: ...

    @abstractmethod
    def _put(self, owner: str, name: str, file: bytes) -> None:
        """Store a file, and evict others until all limits hold."""

    @abstractmethod
    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        """Return a file, or its first bytes; None if it has expired."""

    @abstractmethod
    def _delete(self, owner: str, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def _entries(self) -> Iterable[Entry]:
        """Return all images; remove expired ones."""


class HandleStore(ImageStore):
    """Images in a folder."""

    failure = "the disk of stored images fails"

    def __init__(
        self, folder: Path, limits: StoreLimits, now: Callable[[], float] = time.time
    ) -> None:
        """Make the folder and its secret, readable for this user alone; raise `SettingsError`."""
        super().__init__(limits)
        self._folder = folder
        self._now = now
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / "secret"
            new_secret = _written(path, secrets.token_bytes(_SECRET_BYTES))
            with suppress(FileExistsError):  # another gateway was first
                os.link(new_secret, path)
            new_secret.unlink()
            self._handle_ids = HandleIds(path.read_bytes())
        except OSError as error:
            raise SettingsError(
                f"{variable('images_folder')}={str(folder)!r} cannot be written: {error}"
            ) from error

    def _ids(self) -> HandleIds:
        return self._handle_ids

    def _put(self, owner: str, name: str, file: bytes) -> None:
        path = self._folder / owner / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = _written(path, file)
        os.utime(part, (self._now(), self._now()))
        with (self._folder / "lock").open("a") as lock:  # closing it unlocks
            fcntl.flock(lock, fcntl.LOCK_EX)
            part.rename(path)
            self.make_room()

    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        with suppress(FileNotFoundError), (self._folder / owner / name).open("rb") as file:
            stat = os.fstat(file.fileno())
            expires_s = stat.st_mtime + self.limits.kept_s
            if expires_s > self._now():
                return file.read(max_bytes), stat.st_size, int(expires_s)
        return None

    def _delete(self, owner: str, name: str) -> None:
        (self._folder / owner / name).unlink(missing_ok=True)

    def _entries(self) -> Iterator[Entry]:
        """Yield the images; remove expired ones and those of killed writers."""
        for owner in filter(os.DirEntry[str].is_dir, os.scandir(self._folder)):
            for file in os.scandir(owner.path):
                with suppress(FileNotFoundError):  # just removed
                    stat = file.stat()
                    is_part = "." in file.name
                    kept_s = _ABANDONED_S if is_part else self.limits.kept_s
                    if stat.st_mtime + kept_s <= self._now():
                        os.unlink(file.path)
                    elif not is_part:
                        yield Entry(owner.name, file.name, stat.st_size, stat.st_mtime)


def _written(path: Path, data: bytes) -> Path:
    """Write a file beside the place of `path`, durably."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


class ValkeyImages(ImageStore):
    """Images in the store of a URL."""

    failure = "the store of images does not answer"

    def __init__(self, url: str, limits: StoreLimits) -> None:
        # late imports: a gateway with a folder does without the client's memory
        from redis import BlockingConnectionPool, Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
        from redis.retry import Retry

        super().__init__(limits)
        self.failures = (RedisError, OSError)
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # for connections that the store has closed
        )
        self._store: Any = Redis.from_pool(pool)  # its types join those of two clients

    def _ids(self) -> HandleIds:
        with self._store.pipeline() as calls:
            calls.set(f"{_PREFIX}secret", secrets.token_bytes(_SECRET_BYTES), nx=True)
            calls.get(f"{_PREFIX}secret")
            return HandleIds(calls.execute()[1])

    def _put(self, owner: str, name: str, file: bytes) -> None:
        member = f"{owner}/{name}"
        expires_ms = int(1000 * (time.time() + self.limits.kept_s))
        with self._store.pipeline() as calls:
            calls.set(f"{_PREFIX}image:{member}", file, ex=self.limits.kept_s)
            calls.hset(f"{_PREFIX}facts", member, f"{len(file)} {expires_ms}")
            calls.execute()
        self.make_room()

    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        member = f"{owner}/{name}"
        last_byte = max_bytes - 1 if max_bytes > 0 else -1
        with self._store.pipeline() as calls:
            calls.getrange(f"{_PREFIX}image:{member}", 0, last_byte)
            calls.hget(f"{_PREFIX}facts", member)
            file, facts = calls.execute()
        if not file or facts is None:
            return None
        num_bytes, expires_ms = map(int, facts.split())
        return file, num_bytes, expires_ms // 1000

    def _delete(self, owner: str, name: str) -> None:
        member = f"{owner}/{name}"
        with self._store.pipeline() as calls:
            calls.delete(f"{_PREFIX}image:{member}")
            calls.hdel(f"{_PREFIX}facts", member)
            calls.execute()

    def _entries(self) -> Iterator[Entry]:
        for member, facts in self._store.hgetall(f"{_PREFIX}facts").items():
            owner, name = member.decode().split("/")
            num_bytes, expires_ms = map(int, facts.split())
            if expires_ms > 1000 * time.time():
                yield Entry(owner, name, num_bytes, expires_ms)
            else:
                self._delete(owner, name)


def image_store(values: Settings) -> ImageStore | None:
    """Return the store of images, or None if it is disabled; raise `SettingsError`."""
    place = values.images_folder
    if place is None or not values.images_mb:
        return None
    max_bytes = values.images_mb * BYTES_PER_MB
    max_bytes_of_key = values.images_mb_per_key * BYTES_PER_MB or max_bytes
    limits = StoreLimits(max_bytes, max_bytes_of_key, values.max_images, values.images_kept_s)
    if is_store_url(place):
        return ValkeyImages(place, limits)
    return HandleStore(Path(place), limits)


def stored(images: ImageStore | None) -> ImageStore:
    """Return the store; raise `not_found` if it is disabled."""
    if images is None:
        message = "this service stores no images; send the image itself"
        raise ServiceError(message, "image", "not_found")
    return images
