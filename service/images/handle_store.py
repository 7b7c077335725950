"""Stored images of API keys, by their ids, in a database of a folder.

Any number of gateways of one host share the folder's `images.sqlite3`. An owner is an API key, by
its hash. Above the limit of bytes the key that holds the most bytes loses its oldest image, above
that of images the key that holds the most images. Adding takes the same time however many there
are. All calls block.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from service.admission.threads import STORING
from service.errors import NotReady, ServiceError
from service.images.inputs import HandleIds, ImageHandle
from service.settings import BYTES_PER_MB, Settings, SettingsError, variable
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
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_DATABASE = "images.sqlite3"
_BUSY_S = 10.0  # wait for another process's transaction
_FAILURES = (sqlite3.Error, OSError)
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
# removes an image while a limit is exceeded: that of images, of bytes
_EVICT = """
    DELETE FROM images WHERE rowid = (
        SELECT rowid FROM images WHERE owner = (
            SELECT * FROM (
                SELECT owner FROM owners WHERE :max_images < (SELECT sum(num_images) FROM owners)
                ORDER BY num_images DESC LIMIT 1)
            UNION ALL SELECT * FROM (
                SELECT owner FROM owners WHERE :max_bytes < (SELECT sum(num_bytes) FROM owners)
                ORDER BY num_bytes DESC LIMIT 1)
            LIMIT 1
        ) ORDER BY sent_s, rowid LIMIT 1
    )
"""


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits on stored images."""

    max_bytes: int
    max_images: int
    kept_s: int


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A stored image, without its bytes."""

    id: str
    bytes: int
    width: int  # px, upright
    height: int
    expires_at: int  # seconds of the epoch


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


class HandleStore:
    """Images in a folder.

    Methods raise `not_found` for an id of another key, `image_expired` if the image is gone, and
    `NotReady` if the disk fails.

    One connection stays open: SQLite copies its log into the database when the last one closes. Its
    waiters poll, so that of many threads any may be the next: ours have a lock of their own.
    """

    def __init__(
        self, folder: Path, limits: StoreLimits, now: Callable[[], float] = time.time
    ) -> None:
        """Make folder and database, readable for this user alone; raise `SettingsError`."""
        self.limits = limits
        self._path = folder / _DATABASE
        self._now = now
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        try:
            self._change()
        except _FAILURES as error:
            setting = f"{variable('images_folder')}={str(folder)!r}"
            raise SettingsError(f"{setting} cannot be written: {error}") from error

    def add(self, owner: str, data: bytes, size_wh: tuple[int, int]) -> StoredImage:
        """Store an image for an API key, from now for the whole time; raise `payload_too_large`."""
        allowed = self.limits.max_bytes - _SIZE.size
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
        """Raise `NotReady` for an error of the disk, such as a full one."""
        try:
            yield
        except _FAILURES as error:
            logger.error("stored images fail: %s", error)
            raise NotReady("the disk of stored images fails; send the image itself") from error

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
        """Remove a file, or store another in its place and evict until all limits hold.

        Before, remove a hundred of the expired ones, and return their number.
        """

        def change(db: sqlite3.Connection) -> int:
            with db:
                db.execute("BEGIN IMMEDIATE")
                now_s = self._now()  # one that waited here is not older than those stored before
                num_expired = db.execute(_REMOVE_EXPIRED, (now_s - self.limits.kept_s,)).rowcount
                db.execute("DELETE FROM images WHERE owner = ? AND name = ?", (owner, name))
                if file:
                    row = (owner, name, now_s, len(file), file)
                    db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?)", row)
                    while db.execute(_EVICT, asdict(self.limits)).rowcount:
                        pass
            return num_expired

        return self._run(change)

    def _get(self, owner: str, name: str, max_bytes: int) -> StoredFile | None:
        """Return a file, or its first bytes; None if it has expired."""
        content = "file" if max_bytes < 0 else f"substr(file, 1, {max_bytes})"
        query = f"""
            SELECT {content}, num_bytes, CAST(sent_s + ? AS INTEGER) FROM images
            WHERE owner = ? AND name = ? AND sent_s > ?
        """
        values = (self.limits.kept_s, owner, name, self._now() - self.limits.kept_s)
        file: StoredFile | None = self._run(lambda db: db.execute(query, values).fetchone())
        return file


def image_store(values: Settings) -> HandleStore | None:
    """Return the store of images, or None if it is disabled; raise `SettingsError`."""
    if not values.images_mb:
        return None
    limits = StoreLimits(values.images_mb * BYTES_PER_MB, _MAX_IMAGES, _KEPT_S)
    if values.images_folder is not None:
        return HandleStore(Path(values.images_folder), limits)
    try:
        return HandleStore(store_home() / "images", limits)
    except SettingsError as error:
        logger.warning("no images are stored: %s", error)
        return None


def stored(images: HandleStore | None) -> HandleStore:
    """Return the store; raise `not_found` if it is disabled."""
    if images is None:
        message = "this service stores no images; send the image itself"
        raise ServiceError(message, "image", "not_found")
    return images
