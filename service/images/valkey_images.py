"""Stored images in a Redis or Valkey, which gateways of several hosts share.

    image:OWNER/NAME    width and height, 4 bytes each, and the file; expires by itself
    secret              the key of the ids
    expiry              sorted set of OWNER/NAME by the time at which they expire
    used:OWNER          sorted set of OWNER/NAME by their last use
    sizes, bytes        hashes: OWNER/NAME to its bytes, OWNER to those of all its images

All names begin with `diptych:images:`. Each change is one script, by the store's clock. Limits and
ids are those of the folder (handle_store.py). All calls block.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import NotReady
from service.images.handle_store import (
    SECRET_BYTES,
    SIZE,
    StoredImage,
    StoreLimits,
    check_size,
    gone,
    name_of,
)
from service.images.inputs import HandleIds, ImageHandle

logger = logging.getLogger(__name__)

_TIMEOUT_S = 2.0  # a call, which may move a file of 20 MB
_MAX_CONNECTIONS = 4
_PREFIX = "diptych:images:"

_FORGET = f"""
local function key(name) return '{_PREFIX}' .. name end
local t = redis.call('TIME') local now = t[1] + t[2] / 1000000
local function forget(member)
    local owner = string.match(member, '^[^/]*')
    local size = tonumber(redis.call('HGET', key('sizes'), member) or 0)
    redis.call('HDEL', key('sizes'), member)
    redis.call('ZREM', key('expiry'), member)
    redis.call('ZREM', key('used:' .. owner), member)
    if redis.call('HINCRBY', key('bytes'), owner, -size) <= 0 then
        redis.call('HDEL', key('bytes'), owner)
    end
    return redis.call('DEL', key('image:' .. member))
end
"""

_ADD = f"""{_FORGET}
local owner, name, data, kept_s = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local max_bytes, max_of_key = tonumber(ARGV[5]), tonumber(ARGV[6])
local max_images = tonumber(ARGV[7])
local member = owner .. '/' .. name
forget(member)
redis.call('SET', key('image:' .. member), data, 'EX', kept_s)
redis.call('HSET', key('sizes'), member, #data)
redis.call('HINCRBY', key('bytes'), owner, #data)
redis.call('ZADD', key('expiry'), now + kept_s, member)
redis.call('ZADD', key('used:' .. owner), now, member)
for _, old in ipairs(redis.call('ZRANGEBYSCORE', key('expiry'), '-inf', now)) do forget(old) end
while true do
    local largest, most, total = nil, -1, 0
    local held = redis.call('HGETALL', key('bytes'))
    for index = 1, #held, 2 do
        local size = tonumber(held[index + 1])
        total = total + size
        if size > most then largest, most = held[index], size end
    end
    local num_images = redis.call('ZCARD', key('expiry'))
    local fits = most <= max_of_key and total <= max_bytes and num_images <= max_images
    if fits or not largest then return end
    local oldest = redis.call('ZRANGE', key('used:' .. largest), 0, 0)[1]
    if oldest then forget(oldest) else redis.call('HDEL', key('bytes'), largest) end
end
"""

_READ = f"""{_FORGET}
local data = redis.call('GET', key('image:' .. ARGV[1] .. '/' .. ARGV[2]))
if data then
    redis.call('ZADD', key('used:' .. ARGV[1]), 'XX', now, ARGV[1] .. '/' .. ARGV[2])
end
return data
"""

_REMOVE = f"""{_FORGET}
return forget(ARGV[1] .. '/' .. ARGV[2])
"""


class ValkeyImages:
    """Images of API keys in the store of a URL, by their ids."""

    def __init__(self, url: str, limits: StoreLimits) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # for connections that the store has closed
        )
        self._store: Any = Redis.from_pool(pool)  # its types join those of two clients
        self._add = self._store.register_script(_ADD)
        self._read = self._store.register_script(_READ)
        self._remove = self._store.register_script(_REMOVE)
        self._limits = limits

    def add(self, owner: str, data: bytes, size_wh: tuple[int, int]) -> StoredImage:
        """Store an image for an API key, from now for the whole time.

        Raise `PayloadTooLarge` or `NotReady`.
        """
        limits = self._limits
        check_size(limits, data)
        with _store_errors():
            ids = self._ids()
            handle = ImageHandle(ids.make(owner, data))
            values: list[str | bytes | int] = [owner, name_of(ids, owner, handle)]
            values += [SIZE.pack(*size_wh) + data, limits.kept_s]
            values += [limits.max_bytes, limits.max_bytes_of_key, limits.max_images]
            self._add(args=values)
        return self.describe(owner, handle)

    def describe(self, owner: str, handle: ImageHandle) -> StoredImage:
        """Return an image without its bytes; raise `NotFound`, `ImageExpired` or `NotReady`."""
        with _store_errors():
            member = f"{owner}/{name_of(self._ids(), owner, handle)}"
            with self._store.pipeline() as calls:
                calls.zscore(f"{_PREFIX}expiry", member)
                calls.strlen(f"{_PREFIX}image:{member}")
                calls.getrange(f"{_PREFIX}image:{member}", 0, SIZE.size - 1)
                expires_at, num_bytes, size = calls.execute()
        if expires_at is None or not num_bytes:
            raise gone(handle)
        width, height = SIZE.unpack(size)
        return StoredImage(handle.text, num_bytes - SIZE.size, (width, height), int(expires_at))

    def read(self, owner: str, handle: ImageHandle) -> bytes:
        """Return the file of an image; raise `NotFound`, `ImageExpired` or `NotReady`."""
        with _store_errors():
            file: bytes | None = self._read(args=[owner, name_of(self._ids(), owner, handle)])
        if file is None:
            raise gone(handle)
        return file[SIZE.size :]

    def remove(self, owner: str, handle: ImageHandle) -> None:
        """Remove an image; raise `NotFound`, `ImageExpired` or `NotReady`."""
        with _store_errors():
            num_removed = self._remove(args=[owner, name_of(self._ids(), owner, handle)])
        if not num_removed:
            raise gone(handle)

    async def remove_regularly(self) -> None:
        """Wait until cancelled: the store removes expired images by itself."""
        await asyncio.Event().wait()

    def _ids(self) -> HandleIds:
        """Return the ids of the store's secret, which a store that has lost its data gets again."""
        with self._store.pipeline() as calls:
            calls.set(f"{_PREFIX}secret", secrets.token_bytes(SECRET_BYTES), nx=True)
            calls.get(f"{_PREFIX}secret")
            return HandleIds(calls.execute()[1])


@contextmanager
def _store_errors() -> Iterator[None]:
    """Raise `NotReady` for a store that does not answer, or that is full."""
    try:
        yield
    except (RedisError, OSError) as error:
        logger.error("the store of images fails: %s", error)
        message = "the store of images does not answer; send the image itself"
        raise NotReady(message) from error
