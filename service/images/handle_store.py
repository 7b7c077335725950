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

OWNER identifies an API key by its hash. Above the limits of one key it loses its oldest image.
Above the limit of bytes the key that holds the most bytes does, above that of images the key that
holds the most images. Adding takes the same time however many there are. All calls block.
"""

import asyncio
import logging
import os
import secrets
import sqlite3
import stat
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from service.admission.threads import STORING
from service.errors import NotReady, ServiceError
from service.images.inputs import HandleIds, ImageHandle
from service.settings import BYTES_PER_MB, Settings, SettingsError, is_store_url, variable
from tasks.errors import shown
from wire.artifacts.model_store import store_home

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
StoredFile = tuple[bytes, int, int]  # its content or start, number of bytes, when it expires

_SIZE = struct.Struct(">II")  # width, height
_SECRET_BYTES = 32
_REMOVE_EVERY_S = 60.0
_MAX_IMAGES = 10_000  # bounds the rows of small images
_KEPT_S = 3_600  # as long as a client asks about an image; DIPTYCH_IMAGES_MB bounds their size
_TIMEOUT_S = 2.0  # a call of a store, which may move a file of 20 MB
_MAX_CONNECTIONS = 4
_PREFIX = "diptych:images:"
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_DATABASE = "images.sqlite3"
_BUSY_S = 10.0  # wait for another process's transaction
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA = """
    PRAGMA page_size = 16384;  -- half the time of the default for an image of 2 MB
    PRAGMA auto_vacuum = FULL;  -- the room of evicted images is given back
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;  -- an image may be lost with its host
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
# a hundred of them at a time: other writers wait
_REMOVE_EXPIRED = """
    DELETE FROM images WHERE rowid IN
        (SELECT rowid FROM images WHERE sent_s <= ? ORDER BY sent_s LIMIT 100)
"""
# removes an image while a limit is exceeded: that of the key, of all images, of all bytes
_EVICT = """
    DELETE FROM images WHERE rowid = (
        SELECT rowid FROM images WHERE owner = (
            SELECT owner FROM owners WHERE owner = :owner
                AND (num_images > :max_images_of_key OR num_bytes > :max_bytes_of_key)
            UNION ALL SELECT * FROM (
                SELECT owner FROM owners WHERE :max_images < (SELECT sum(num_images) FROM owners)
                ORDER BY num_images DESC LIMIT 1)
            UNION ALL SELECT * FROM (
                SELECT owner FROM owners WHERE :max_bytes < (SELECT sum(num_bytes) FROM owners)
                ORDER BY num_bytes DESC LIMIT 1)
            LIMIT 1
        ) ORDER BY sent_s, rowid LIMIT 1
    )
"""
# As `ImageStore._change`. KEYS: the prefix. ARGV: owner, name, file, the limits in order. The time
# is the store's: clocks of gateways differ.
_CHANGE = """
local prefix, owner, name, file = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local max_bytes, max_bytes_of_key = tonumber(ARGV[4]), tonumber(ARGV[5])
local max_images, max_images_of_key = tonumber(ARGV[6]), tonumber(ARGV[7])
local kept_s = tonumber(ARGV[8])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local function count(of, bytes)  -- of a store that evicts keys, any of these may be lost
    local num_images = redis.call('ZCARD', prefix .. 'sent:' .. of)
    redis.call('ZADD', prefix .. 'owners:images', num_images, of)
    redis.call('ZINCRBY', prefix .. 'owners:bytes', bytes, of)
    if num_images == 0 then
        redis.call('ZREM', prefix .. 'owners:images', of)
        redis.call('ZREM', prefix .. 'owners:bytes', of)
    end
end
local function remove(member)
    local of, name_of = string.match(member, '(.*)/(.*)')
    local bytes = redis.call('HGET', prefix .. 'bytes', member) or 0
    redis.call('ZREM', prefix .. 'expires', member)
    redis.call('DEL', prefix .. 'image:' .. member)
    redis.call('HDEL', prefix .. 'bytes', member)
    if redis.call('ZREM', prefix .. 'sent:' .. of, name_of) == 1 then count(of, -bytes) end
end
local function evict(of)
    local name_of = redis.call('ZRANGE', prefix .. 'sent:' .. of, 0, 0)[1]
    if name_of then remove(of .. '/' .. name_of) else count(of, 0) end
end
local expired = redis.call('ZRANGEBYSCORE', prefix .. 'expires', '-inf', now, 'LIMIT', 0, 100)
for _, member in ipairs(expired) do remove(member) end
local member = owner .. '/' .. name
if name ~= '' then remove(member) end
if file == '' then return #expired end
redis.call('SET', prefix .. 'image:' .. member, file, 'EX', kept_s)
redis.call('HSET', prefix .. 'bytes', member, #file)
redis.call('ZADD', prefix .. 'expires', now + kept_s, member)
redis.call('ZADD', prefix .. 'sent:' .. owner, now, name)
count(owner, #file)
local function is_over(unit, max)
    return tonumber(redis.call('ZSCORE', prefix .. 'owners:' .. unit, owner) or 0) > max
end
while is_over('bytes', max_bytes_of_key) or is_over('images', max_images_of_key) do evict(owner) end
for unit, max in pairs({bytes = max_bytes, images = max_images}) do
    local owners = prefix .. 'owners:' .. unit
    repeat
        local total, scores = 0, redis.call('ZRANGE', owners, 0, -1, 'WITHSCORES')
        for index = 2, #scores, 2 do total = total + scores[index] end
        local is_full = total > max
        if is_full then evict(scores[#scores - 1]) end
    until not is_full
end
return #expired
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
    bytes: int
    width: int  # px, upright
    height: int
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
            self._change(owner, self._name(owner, handle), _SIZE.pack(*size_wh) + data)
        return self.describe(owner, handle)

    def describe(self, owner: str, handle: ImageHandle) -> StoredImage:
        size, num_bytes, expires_at = self._existing(owner, handle, _SIZE.size)
        width, height = _SIZE.unpack(size)
        return StoredImage(handle.text, num_bytes - _SIZE.size, width, height, expires_at)

    def read(self, owner: str, handle: ImageHandle) -> bytes:
        return self._existing(owner, handle)[0][_SIZE.size :]

    def remove(self, owner: str, handle: ImageHandle) -> None:
        self._existing(owner, handle, _SIZE.size)
        with self._errors():
            self._change(owner, self._name(owner, handle))

    async def remove_regularly(self) -> None:
        """Remove expired images once a minute until cancelled."""
        while True:
            with suppress(NotReady):  # it has been logged
                await STORING.run(self.remove_expired)
            await asyncio.sleep(_REMOVE_EVERY_S)

    def remove_expired(self) -> None:
        with self._errors():
            while self._change():
                pass

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
    def _change(self, owner: str = "", name: str = "", file: bytes = b"") -> int:
        """Remove a file, or store another in its place and evict until all limits hold.

        Before, remove a hundred of the expired ones, and return their number.
        """

    @abstractmethod
    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        """Return a file, or its first bytes; None if it has expired."""


def _make_private(database: Path) -> None:
    """Take the access of others from a database and its folder; raise `PermissionError`.

    A folder that holds other files is not ours to change.
    """
    folder = database.parent
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & _OF_OTHERS:
        if any(not path.name.startswith(_DATABASE) for path in folder.iterdir()):
            problem = f"others have access to it (mode {mode:o}), and it holds other files"
            raise PermissionError(f"{problem}; run chmod 700, or name a folder for images alone")
        folder.chmod(0o700)
    for path in folder.glob(f"{_DATABASE}*"):  # SQLite makes its others with the mode of the first
        with suppress(FileNotFoundError):  # another gateway closes the database
            path.chmod(0o600)


class HandleStore(ImageStore):
    """Images in a folder.

    One connection stays open: SQLite copies its log into the database when the last one closes. Its
    waiters poll, so that of many threads any may be the next: ours have a lock of their own.
    """

    failure = "the disk of stored images fails"

    def __init__(
        self, folder: Path, limits: StoreLimits, now: Callable[[], float] = time.time
    ) -> None:
        """Make folder and database, readable for this user alone; raise `SettingsError`."""
        super().__init__(limits)
        self._path = folder / _DATABASE
        self._now = now
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        try:
            self._change()
        except self.failures as error:
            setting = f"{variable('images_folder')}={str(folder)!r}"
            raise SettingsError(f"{setting} cannot be written: {error}") from error

    def _run(self, work: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        """Return what `work` returns, after another try if the database is damaged."""
        with self._lock:
            try:
                return work(self._opened())
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGE:
                    raise
                logger.warning("stored images are lost: %s is damaged: %s", self._path, error)
            if self._is_in_place():  # no other gateway has replaced it
                for suffix in ("-wal", "-shm", ""):  # last the file that others look for
                    self._path.with_name(_DATABASE + suffix).unlink(missing_ok=True)
            self._db = None
            return work(self._opened())

    def _opened(self) -> sqlite3.Connection:
        """Return the database, opened again or made again if its file has gone."""
        if self._db is not None:
            if self._is_in_place():
                return self._db
            logger.warning("stored images are lost: %s was removed or replaced", self._path)
            self._db = None
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        _make_private(self._path)
        self._stat = self._path.stat()
        db = sqlite3.connect(self._path, _BUSY_S, isolation_level=None, check_same_thread=False)
        db.executescript(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (self._secret,))
        (self._secret,) = db.execute("SELECT value FROM secret").fetchone()
        self._db = db
        return db

    def _is_in_place(self) -> bool:
        return self._path.exists() and os.path.samestat(self._stat, self._path.stat())

    def _ids(self) -> HandleIds:
        if not self._is_in_place():  # another gateway's database may have another secret
            self._run(lambda _: None)
        return HandleIds(self._secret)

    def _change(self, owner: str = "", name: str = "", file: bytes = b"") -> int:
        def change(db: sqlite3.Connection) -> int:
            with db:
                db.execute("BEGIN IMMEDIATE")
                now_s = self._now()  # one that waited here is not older than those stored before
                num_expired = db.execute(_REMOVE_EXPIRED, (now_s - self.limits.kept_s,)).rowcount
                db.execute("DELETE FROM images WHERE owner = ? AND name = ?", (owner, name))
                if file:
                    row = (owner, name, now_s, len(file), file)
                    db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", row)
                    while db.execute(_EVICT, {"owner": owner, **asdict(self.limits)}).rowcount:
                        pass
            return num_expired

        return self._run(change)

    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        content = "file" if max_bytes < 0 else f"substr(file, 1, {max_bytes})"
        query = f"""
            SELECT {content}, num_bytes, CAST(sent_s + ? AS INTEGER) FROM images
            WHERE owner = ? AND name = ? AND sent_s > ?
        """
        values = (self.limits.kept_s, owner, name, self._now() - self.limits.kept_s)
        file: StoredFile | None = self._run(lambda db: db.execute(query, values).fetchone())
        return file


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

    def _change(self, owner: str = "", name: str = "", file: bytes = b"") -> int:
        return int(self._script(keys=[_PREFIX], args=(owner, name, file, *astuple(self.limits))))

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


def image_store(values: Settings) -> ImageStore | None:
    """Return the store of images, or None if it is disabled; raise `SettingsError`."""
    if not values.images_mb:
        return None
    max_bytes = values.images_mb * BYTES_PER_MB
    limits = StoreLimits(
        max_bytes,
        max_bytes,
        _MAX_IMAGES,
        _MAX_IMAGES,
        _KEPT_S,
    )
    place = values.images_folder
    if place is not None:
        is_url = is_store_url(place)
        return ValkeyImages(place, limits) if is_url else HandleStore(Path(place), limits)
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
