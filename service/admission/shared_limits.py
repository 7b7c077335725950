"""The usage of each API key's limits by all gateways, in a shared Redis or Valkey.

A key of the store is one limit of one API key: of a rate a hash {level, at} as in `TokenBucket`, of
concurrent requests a sorted set of leases by their expiry. Each change is one script, by the
store's clock. While the store does not answer, every result is None, at once but for one attempt a
second, and the caller applies its process's own limits. It knows no requests and no HTTP.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from service.telemetry.metrics import SHARED_LIMITS_UNANSWERED

logger = logging.getLogger(__name__)

TIMEOUT_S = 0.1  # per call, including the wait for a connection
_RETRY_AFTER_S = 1.0
_MAX_CONNECTIONS = 4  # a call takes 0.1 ms; more connections do not speed up one event loop

_FAILS = "the store of the shared limits fails: %s; each process applies its own limits"
_NOW = "local t = redis.call('TIME') local now = t[1] + t[2] / 1000000 "

# Buckets expire after 60 seconds: they are full by then, like a missing one.
_TAKE = f"""{_NOW}
local per_minute, amount = tonumber(ARGV[1]), tonumber(ARGV[2])
local bucket = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = per_minute
if bucket[1] then
    level = math.min(per_minute, bucket[1] + math.max(0, now - bucket[2]) * per_minute / 60)
end
if amount > level then
    return tostring((amount - level) * 60 / per_minute)
end
redis.call('HSET', KEYS[1], 'level', level - amount, 'at', now)
redis.call('EXPIRE', KEYS[1], 60)
return '0'
"""

_LEASE = f"""{_NOW}
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
    return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('EXPIREAT', KEYS[1], math.ceil(last[2]))
return 1
"""


async def answer_within(timeout_s: float, call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the answer to `call`; raises TimeoutError.

    The second half of the time begins when the loop notices the end of the first: if the loop was
    late, it has read what the store sent meanwhile.
    """
    loop = asyncio.get_running_loop()
    half_s = timeout_s / 2
    async with asyncio.timeout(None) as limit:
        half = loop.call_later(half_s, lambda: limit.reschedule(loop.time() + half_s))
        try:
            return await call()
        finally:
            half.cancel()


class SharedLimits:
    """The usage of limits in a store, given by its URL; `owner` names an API key."""

    def __init__(
        self, url: str, clock: Callable[[], float] = time.monotonic, timeout_s: float = TIMEOUT_S
    ) -> None:
        # late imports: a gateway without a store does without its client's memory
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        # The one retry is for connections that the store has closed while they were idle.
        pool = BlockingConnectionPool.from_url(
            url, max_connections=_MAX_CONNECTIONS, timeout=timeout_s, retry=Retry(NoBackoff(), 1)
        )
        self._store = Redis.from_pool(pool)
        self._failures = (RedisError, OSError)  # TimeoutError is an OSError
        self._take = self._store.register_script(_TAKE)
        self._lease = self._store.register_script(_LEASE)
        self._clock = clock
        self._timeout_s = timeout_s
        self._is_down = False
        self._retry_at_s = 0.0
        self._releases: set[asyncio.Task[Any]] = set()

    async def connect(self) -> None:
        """Connect now: no request waits for it, and a wrong URL is logged at the start."""
        await self._answer(self._store.ping)

    async def take(self, owner: str, unit: str, per_minute: float, amount: float) -> float | None:
        """Take `amount` and return 0, else return the seconds until it is available."""
        keys = [f"diptych:{owner}:{unit}"]
        wait_s = await self._answer(partial(self._take, keys=keys, args=[per_minute, amount]))
        return None if wait_s is None else float(wait_s)

    async def lease(self, owner: str, max_leases: int, lease: str, seconds: float) -> bool | None:
        """Return True if a request may begin, False if as many are in flight as are allowed."""
        arguments: list[float | str] = [max_leases, seconds, lease]
        is_granted = await self._answer(
            partial(self._lease, keys=[_leases_of(owner)], args=arguments)
        )
        return None if is_granted is None else bool(int(is_granted))

    def release(self, owner: str, lease: str) -> asyncio.Task[Any]:
        """End a lease, in a task that continues if its caller is cancelled."""
        ended = self._answer(partial(self._store.zrem, _leases_of(owner), lease))
        task = asyncio.create_task(ended)
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        return task

    async def close(self) -> None:
        """Finish pending releases, then close the connections."""
        await asyncio.gather(*self._releases)
        await self._store.aclose()

    async def _answer(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return the store's answer, or None if it does not answer."""
        if self._clock() < self._retry_at_s:
            SHARED_LIMITS_UNANSWERED.inc()
            return None
        if self._is_down:
            self._retry_at_s = self._clock() + _RETRY_AFTER_S  # others do not wait for this attempt
        try:
            answer = await answer_within(self._timeout_s, call)
        except self._failures as error:
            SHARED_LIMITS_UNANSWERED.inc()
            self._retry_at_s = self._clock() + _RETRY_AFTER_S
            if not self._is_down:
                self._is_down = True
                reason = str(error).rstrip(".") or f"no answer within {self._timeout_s:g} s"
                logger.error(_FAILS, reason)
            return None
        if self._is_down:
            self._is_down = False
            self._retry_at_s = 0.0
            logger.info("the store of the shared limits answers again")
        return answer


def _leases_of(owner: str) -> str:
    return f"diptych:{owner}:in_flight"
