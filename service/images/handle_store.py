"""Stored images of API keys, by their ids: in a database of a folder, or in a Redis or Valkey.

Any number of gateways of one host share the folder's `images.sqlite3`, those of several hosts a
Valkey, where all names begin with `diptych:images:`:

    image:OWNER/NAME    width and height, 4 bytes each, and the file; expires by itself
    secret              the key of the ids; a store that has lost its data gets another
    expires             sorted set of OWNER/NAME by the time at which it expires, seconds
    bytes               hash of OWNER/NAME to its number of bytes
    sent:OWNER          as `expires`, of one owner, by the order in which they were sent
    owners:images       sorted set of OWNER by its number of images
    owners:bytes        sorted set of OWNER by its number of bytes
    totals              hash of `images` and `bytes` to those of all owners

OWNER identifies an API key by its hash. Above the limits of one key it loses its oldest image.
Above the limit of bytes the key that holds the most bytes does, above that of images the key that
holds the most images. Adding takes the same time however many there are. All calls block.
"""

import asyncio
import logging
import secrets
import sqlite3
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from service.admission.threads import STORING
from service.errors import NotReady, ServiceError
from service.images.inputs import HandleIds, ImageHandle
from service.settings import BYTES_PER_MB, Settings, SettingsError, is_store_url, variable
from tasks.errors import shown
from wire.artifacts.model_store import store_home

logger = logging.getLogger(__name__)

StoredFile = tuple[bytes, int, int]  # its content or start, number of bytes, when it expires

_SIZE = struct.Struct(">II")  # width, height
_SECRET_BYTES = 32
_REMOVE_EVERY_S = 60.0
_TIMEOUT_S = 2.0  # a call of a store, which may move a file of 20 MB
_MAX_CONNECTIONS = 4
_PREFIX = "diptych:images:"
_DATABASE = "images.sqlite3"
_BUSY_S = 10.0  # wait for another process's transaction
_SCHEMA = """
    PRAGMA auto_vacuum = FULL;  -- the room of evicted images is given back
    PRAGMA journal_mode = WAL;
    PRAGMA user_version = 1;  -- a write: the start fails if the folder is not writable
    CREATE TABLE IF NOT EXISTS secret (id INTEGER PRIMARY KEY CHECK (id = 1), value BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS images (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        sent_s REAL NOT NULL,
        num_bytes INTEGER NOT NULL,
        file BLOB NOT NULL,
        PRIMARY KEY (owner, name)
    );
    CREATE INDEX IF NOT EXISTS sent ON images (sent_s);
    CREATE INDEX IF NOT EXISTS sent_of_owner ON images (owner, sent_s);
    CREATE TABLE IF NOT EXISTS owners (
        owner TEXT PRIMARY KEY, num_images INTEGER NOT NULL, num_bytes INTEGER NOT NULL
    );
    CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON images BEGIN
        INSERT INTO owners VALUES (new.owner, 1, new.num_bytes) ON CONFLICT (owner) DO UPDATE
            SET num_images = num_images + 1, num_bytes = num_bytes + new.num_bytes;
    END;
    CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON images BEGIN
        UPDATE owners SET num_images = num_images - 1, num_bytes = num_bytes - old.num_bytes
            WHERE owner = old.owner;
        DELETE FROM owners WHERE owner = old.owner AND num_images = 0;
    END;
"""
# Removes expired images, and of a named one removes it (bytes -1) or adds it and evicts until all
# limits hold. KEYS: the prefix. ARGV: owner, name, bytes, now, seconds until it expires, four
# limits, file
_CHANGE = """
local prefix, owner, name, size = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local now, kept_s = tonumber(ARGV[4]), tonumber(ARGV[5])
local max_bytes, max_bytes_of_key = tonumber(ARGV[6]), tonumber(ARGV[7])
local max_images, max_images_of_key = tonumber(ARGV[8]), tonumber(ARGV[9])
local function count(of, images, bytes)
    redis.call('HINCRBY', prefix .. 'totals', 'images', images)
    redis.call('HINCRBY', prefix .. 'totals', 'bytes', bytes)
    redis.call('ZINCRBY', prefix .. 'owners:bytes', bytes, of)
    if tonumber(redis.call('ZINCRBY', prefix .. 'owners:images', images, of)) <= 0 then
        redis.call('ZREM', prefix .. 'owners:images', of)
        redis.call('ZREM', prefix .. 'owners:bytes', of)
    end
end
local function remove(member)
    local of, name_of = string.match(member, '(.*)/(.*)')
    redis.call('ZREM', prefix .. 'expires', member)
    redis.call('DEL', prefix .. 'image:' .. member)
    local bytes = redis.call('HGET', prefix .. 'bytes', member)
    redis.call('HDEL', prefix .. 'bytes', member)
    -- a store that evicts keys may have lost one of them
    local is_counted = redis.call('ZREM', prefix .. 'sent:' .. of, name_of) == 1 or bytes
    if is_counted then count(of, -1, -tonumber(bytes or 0)) end
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', prefix .. 'expires', '-inf', now)) do
    remove(member)
end
if name == '' then return end
if size < 0 then return remove(owner .. '/' .. name) end
local member = owner .. '/' .. name
remove(member)
redis.call('SET', prefix .. 'image:' .. member, ARGV[10], 'EX', kept_s)
redis.call('HSET', prefix .. 'bytes', member, size)
redis.call('ZADD', prefix .. 'expires', now + kept_s, member)
redis.call('ZADD', prefix .. 'sent:' .. owner, now, name)
count(owner, 1, size)
local function oldest(of)
    return of .. '/' .. redis.call('ZRANGE', prefix .. 'sent:' .. of, 0, 0)[1]
end
local function most(unit)
    return redis.call('ZREVRANGE', prefix .. 'owners:' .. unit, 0, 0)[1]
end
local function held(unit)
    return tonumber(redis.call('ZSCORE', prefix .. 'owners:' .. unit, owner) or 0)
end
local function total(unit)
    return tonumber(redis.call('HGET', prefix .. 'totals', unit))
end
while held('bytes') > max_bytes_of_key or held('images') > max_images_of_key do
    remove(oldest(owner))
end
while total('bytes') > max_bytes do remove(oldest(most('bytes'))) end
while total('images') > max_images do remove(oldest(most('images'))) end
"""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits on stored images."""

    max_bytes: int
    max_bytes_of_key: int
    max_images: int
    max_images_of_key: int
    kept_s: int


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A stored image, without its bytes."""

    id: str
    num_bytes: int
    size_wh: tuple[int, int]  # px, upright
    expires_at: int  # seconds of the epoch


class ImageStore(ABC):
    """Images of API keys, by their ids.

    Methods raise `not_found` for an id of another key, `image_expired` if the image is gone, and
    `NotReady` if the store fails.
    """

    failure: ClassVar[str]
    failures: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

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
        """Remove expired images once a minute until cancelled."""
        while True:
            with suppress(NotReady):  # it has been logged
                await STORING.run(self.remove_expired)
            await asyncio.sleep(_REMOVE_EVERY_S)

    def remove_expired(self) -> None:
        with self._errors():
            self._remove_expired()

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
    def _remove_expired(self) -> None: ...


class HandleStore(ImageStore):
    """Images in a folder."""

    failure = "the disk of stored images fails"

    def __init__(
        self, folder: Path, limits: StoreLimits, now: Callable[[], float] = time.time
    ) -> None:
        """Make folder and database, readable for this user alone; raise `SettingsError`."""
        super().__init__(limits)
        self._path = folder / _DATABASE
        self._now = now
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)  # the folder may be readable for others
            with self._connected() as db:
                db.executescript(_SCHEMA)
                secret = secrets.token_bytes(_SECRET_BYTES)
                db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (secret,))
                self._handle_ids = HandleIds(*db.execute("SELECT value FROM secret").fetchone())
        except self.failures as error:
            raise SettingsError(
                f"{variable('images_folder')}={str(folder)!r} cannot be written: {error}"
            ) from error

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        # transactions are explicit
        with closing(sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = NORMAL")  # an image may be lost with its host
            yield db

    def _ids(self) -> HandleIds:
        return self._handle_ids

    def _put(self, owner: str, name: str, file: bytes) -> None:
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            self._delete_expired(db)
            db.execute("DELETE FROM images WHERE owner = ? AND name = ?", (owner, name))
            row = (owner, name, self._now(), len(file), file)
            db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", row)
            while (largest := self._largest(db, owner)) is not None:
                db.execute(
                    "DELETE FROM images WHERE rowid ="
                    " (SELECT rowid FROM images WHERE owner = ? ORDER BY sent_s, rowid LIMIT 1)",
                    (largest,),
                )
            db.execute("COMMIT")

    def _largest(self, db: sqlite3.Connection, owner: str) -> str | None:
        """Return the key that must lose an image, None if all limits hold."""
        limits = self.limits
        usage = "SELECT num_images, num_bytes FROM owners WHERE owner = ?"
        # without a row the new image has been evicted
        num_images, num_bytes = db.execute(usage, (owner,)).fetchone() or (0, 0)
        if num_images > limits.max_images_of_key or num_bytes > limits.max_bytes_of_key:
            return owner
        total = "SELECT sum(num_images), sum(num_bytes) FROM owners"
        num_images, num_bytes = db.execute(total).fetchone()
        if num_images > limits.max_images:
            order = "num_images"
        elif num_bytes > limits.max_bytes:
            order = "num_bytes"
        else:
            return None
        largest: str
        (largest,) = db.execute(
            f"SELECT owner FROM owners ORDER BY {order} DESC LIMIT 1"
        ).fetchone()
        return largest

    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        content = "file" if max_bytes < 0 else f"substr(file, 1, {max_bytes})"
        query = f"SELECT {content}, num_bytes, sent_s FROM images WHERE owner = ? AND name = ?"
        with self._connected() as db:
            row = db.execute(query, (owner, name)).fetchone()
        if row is None or row[2] + self.limits.kept_s <= self._now():
            return None
        file, num_bytes, sent_s = row
        return file, num_bytes, int(sent_s + self.limits.kept_s)

    def _delete(self, owner: str, name: str) -> None:
        with self._connected() as db:
            db.execute("DELETE FROM images WHERE owner = ? AND name = ?", (owner, name))

    def _remove_expired(self) -> None:
        with self._connected() as db:
            self._delete_expired(db)

    def _delete_expired(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM images WHERE sent_s <= ?", (self._now() - self.limits.kept_s,))


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
        self._script = self._store.register_script(_CHANGE)

    def _ids(self) -> HandleIds:
        with self._store.pipeline() as calls:
            calls.set(f"{_PREFIX}secret", secrets.token_bytes(_SECRET_BYTES), nx=True)
            calls.get(f"{_PREFIX}secret")
            return HandleIds(calls.execute()[1])

    def _put(self, owner: str, name: str, file: bytes) -> None:
        self._change(owner, name, len(file), file)

    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        member = f"{owner}/{name}"
        last_byte = max_bytes - 1 if max_bytes > 0 else -1
        with self._store.pipeline() as calls:
            calls.getrange(f"{_PREFIX}image:{member}", 0, last_byte)
            calls.hget(f"{_PREFIX}bytes", member)
            calls.zscore(f"{_PREFIX}expires", member)
            file, num_bytes, expires_at = calls.execute()
        if not file or num_bytes is None or expires_at is None:
            return None
        return file, int(num_bytes), int(expires_at)

    def _delete(self, owner: str, name: str) -> None:
        self._change(owner, name, -1)

    def _remove_expired(self) -> None:
        self._change("", "", -1)

    def _change(self, owner: str, name: str, num_bytes: int, file: bytes = b"") -> None:
        limits = self.limits
        bounds = (limits.max_bytes, limits.max_bytes_of_key)
        numbers = (*bounds, limits.max_images, limits.max_images_of_key)
        times = (time.time(), limits.kept_s)
        self._script(keys=[_PREFIX], args=[owner, name, num_bytes, *times, *numbers, file])


def image_store(values: Settings) -> ImageStore | None:
    """Return the store of images, or None if it is disabled; raise `SettingsError`."""
    if not values.images_mb:
        return None
    max_bytes = values.images_mb * BYTES_PER_MB
    limits = StoreLimits(
        max_bytes,
        values.images_mb_per_key * BYTES_PER_MB or max_bytes,
        values.max_images,
        values.max_images_per_key or values.max_images,
        values.images_kept_s,
    )
    place = values.images_folder
    if place is not None and is_store_url(place):
        return ValkeyImages(place, limits)
    if place is not None:
        return HandleStore(Path(place), limits)
    try:
        return HandleStore(store_home() / "images", limits)
    except SettingsError as error:
        logger.warning("no images are stored: %s", error)
        return None


def stored(images: ImageStore | None) -> ImageStore:
    """Return the store; raise `not_found` if it is disabled."""
    if images is None:
        message = "this service stores no images; send the image itself"
        raise ServiceError(message, "image", "not_found")
    return images
