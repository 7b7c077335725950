"""API keys: a re-read file of their SHA-256 hashes, their quotas, the rate of wrong ones.

A line of the file is one key, with optional limits:

    HASH
    HASH name=batch requests_per_minute=60 megapixels_per_minute=100 max_concurrent=4

Errors and logs never quote a line: it may hold a key by mistake. Rates are token buckets with one
rate (RFC 2697): a bucket is full at the start and holds one minute's refill.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Self

from cachetools import LRUCache
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.admission.shared_limits import SharedLimits
from service.errors import ImageTooLarge, InvalidRequest, Overloaded, Unauthorized
from service.settings import SettingsError, variable
from service.validation import rejected_field

logger = logging.getLogger(__name__)

Clock = Callable[[], float]  # seconds, such as time.monotonic

_PIXELS_PER_MEGAPIXEL = 1_000_000
_LEASE_MARGIN_S = 2.0  # a request ends shortly after its deadline
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHECK_INTERVAL_S = 1.0
_VARIABLE = variable("api_keys_file")
_MAX_WRONG_KEYS_PER_MINUTE = 10  # per address
_MAX_ADDRESSES = 10_000
_OWNER_CHARS = 16  # prefix of a key's SHA-256: it identifies the key without revealing it
_Rate = Annotated[int, Field(ge=1, le=1_000_000)]


class QuotaLimits(BaseModel):
    """Limits of one API key; unlimited by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: _Rate | None = None
    # an image counts once, however many models it is sent to
    megapixels_per_minute: _Rate | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] | None = None


class KeyEntry(QuotaLimits):
    """One key of the file."""

    sha256: str  # hexadecimal
    # shown in messages; keys with one name are one client in the fair queue
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


_OPTIONS = ("name", *QuotaLimits.model_fields)
NO_LIMITS = QuotaLimits()


class TokenBucket:
    """A bucket that refills at `per_minute` and holds at most that much."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._refilled_s = clock()

    def take(self, amount: float) -> float:
        """Take `amount` and return 0, or return the seconds until it is available."""
        now_s = self._clock()
        self._level = min(
            self.per_minute, self._level + (now_s - self._refilled_s) * self.per_minute / 60
        )
        self._refilled_s = now_s
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) * 60 / self.per_minute


class Quota:
    """The limits of one API key and their usage, counted for all gateways if `shared` is set.

    What this process has used is counted in both cases, and bounds it while the shared store does
    not answer.
    """

    def __init__(
        self,
        name: str,
        limits: QuotaLimits,
        clock: Clock = time.monotonic,
        shared: SharedLimits | None = None,
        owner: str = "anonymous",
    ) -> None:
        self.name = name
        self.owner = owner  # owns stored files: unlike the name, it is unique to the key
        self._max_concurrent = limits.max_concurrent
        self._num_concurrent = 0
        self._requests = _bucket(limits.requests_per_minute, clock)
        self._megapixels = _bucket(limits.megapixels_per_minute, clock)
        self._shared = shared

    async def take_request(self, num_requests: int = 1) -> None:
        """Count one request, or several at once, as for tiles.

        Raise `Overloaded` if the rate is exceeded, or `InvalidRequest` beyond a minute's quota.
        """
        if self._requests is None:
            return
        limit = f"{self._requests.per_minute:g} requests per minute"
        if num_requests > self._requests.per_minute:
            counted = f"its tiles count as {num_requests} requests"
            raise InvalidRequest(f"{counted}; the key {self.name!r} may send {limit}", "tiles")
        if wait_s := await self._take("requests", self._requests, num_requests):
            raise self._exceeded(limit, wait_s)

    async def take_pixels(self, num_pixels: int) -> None:
        """Count one image; raise `Overloaded`, or `ImageTooLarge` beyond a minute's quota."""
        if self._megapixels is None:
            return
        megapixels = num_pixels / _PIXELS_PER_MEGAPIXEL
        allowed = self._megapixels.per_minute
        if megapixels > allowed:
            allowance = f"the key {self.name!r} may send {allowed:g} per minute"
            raise ImageTooLarge(f"the image has {megapixels:g} megapixels; {allowance}", "image")
        if wait_s := await self._take("megapixels", self._megapixels, megapixels):
            raise self._exceeded(f"{allowed:g} megapixels per minute", wait_s)

    async def begin_request(self, timeout_s: float) -> str:
        """Count a concurrent request until `end_request`, at most `timeout_s` long.

        Return its lease in the shared store, empty without one. Raise `Overloaded` above the limit.
        """
        most = self._max_concurrent
        if most is None:
            return ""
        refusal = self._exceeded(f"{most} concurrent requests", 1)
        if self._num_concurrent >= most:
            raise refusal
        self._num_concurrent += 1
        if self._shared is None:
            return ""
        lease = uuid.uuid4().hex
        lease_s = timeout_s + _LEASE_MARGIN_S
        try:
            if await self._shared.lease(self.owner, most, lease, lease_s) is False:
                raise refusal
        except BaseException as error:
            self._num_concurrent -= 1
            if isinstance(error, asyncio.CancelledError):
                self._shared.release(self.owner, lease)
            raise
        return lease  # also if the store did not answer: it may hold the lease

    async def end_request(self, lease: str) -> None:
        """Count a request as ended, even if the caller is cancelled."""
        if self._max_concurrent is None:
            return
        self._num_concurrent -= 1
        if self._shared is not None:
            # Awaited, as the client's next request may go to another gateway.
            await asyncio.shield(self._shared.release(self.owner, lease))

    async def _take(self, unit: str, bucket: TokenBucket, amount: float) -> float:
        """Take from the shared bucket, else from the own one; return the seconds to wait."""
        wait_s = None
        if self._shared is not None:
            wait_s = await self._shared.take(self.owner, unit, bucket.per_minute, amount)
        if wait_s:
            return wait_s
        own_wait_s = bucket.take(amount)
        return own_wait_s if wait_s is None else 0.0

    def _exceeded(self, limit: str, wait_s: float) -> Overloaded:
        return Overloaded(f"the key {self.name!r} has reached its limit of {limit}", wait_s)


def _bucket(per_minute: int | None, clock: Clock) -> TokenBucket | None:
    return None if per_minute is None else TokenBucket(per_minute, clock)


UNLIMITED = Quota("anonymous", NO_LIMITS)  # for all requests if the service has no API keys


class ApiKeys:
    """The accepted keys and their quotas; with `entries` None every request is accepted.

    A file is checked for changes once a second.
    """

    def __init__(
        self,
        entries: Iterable[KeyEntry] | None,
        file: Path | None = None,
        clock: Clock = time.monotonic,
        shared: SharedLimits | None = None,
    ) -> None:
        self._file = file
        self._clock = clock
        self._shared = shared
        self._is_open = entries is None
        self._quotas: dict[KeyEntry, Quota] = {}
        # by address, of those that last sent one
        self._wrong_keys: LRUCache[str, TokenBucket] = LRUCache(_MAX_ADDRESSES)
        self._checked_s = clock()
        self._version = _version(file)
        self._accept(entries or ())

    @classmethod
    def load(
        cls, path: Path | None, clock: Clock = time.monotonic, shared: SharedLimits | None = None
    ) -> Self:
        """Read the keys; raise `SettingsError` for an unreadable or malformed file."""
        if path is None:
            return cls(None)
        keys = cls((), path, clock, shared)
        keys._accept(read_keys(path))
        return keys

    def check(self, authorization: str | None, address: str) -> Quota:
        """Return a caller's quota; raise `Unauthorized`, or `Overloaded` after many wrong keys."""
        if self._is_open:
            return UNLIMITED
        self._reload_if_changed()
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        # Every hash is compared: the time of a search that stops at the first match would reveal
        # its position.
        accepted: Quota | None = None
        for entry, quota in self._quotas.items():
            if hmac.compare_digest(digest, entry.sha256):
                accepted = quota
        if accepted is not None and scheme.lower() == "bearer":
            return accepted
        problem = "no API key was sent"
        if key:
            self._count_wrong_key(address)
            problem = "the API key is not accepted"
        raise Unauthorized(f"{problem}; send a valid key in the header Authorization: Bearer KEY")

    def _count_wrong_key(self, address: str) -> None:
        """Count a wrong key; raise `Overloaded` above the rate of its address."""
        client = address
        with suppress(ValueError):  # a client has all of the /64 network of its IPv6 address
            parsed = ipaddress.IPv6Address(address)
            network = ipaddress.IPv6Network((int(parsed), 64), strict=False)
            client = str(parsed.ipv4_mapped or network)
        bucket = self._wrong_keys.get(client)
        if bucket is None:
            bucket = TokenBucket(_MAX_WRONG_KEYS_PER_MINUTE, self._clock)
        self._wrong_keys[client] = bucket
        if wait_s := bucket.take(1):
            limit = f"{_MAX_WRONG_KEYS_PER_MINUTE} wrong API keys per minute"
            raise Overloaded(
                f"this address has reached the limit of {limit}; send a valid key", wait_s
            )

    def _reload_if_changed(self) -> None:
        """Replace the keys if the file has changed and is valid."""
        if self._file is None or self._clock() - self._checked_s < _CHECK_INTERVAL_S:
            return
        self._checked_s = self._clock()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._accept(read_keys(self._file))
        except SettingsError as error:
            logger.error("the API keys are unchanged, because the new file is invalid: %s", error)
        else:
            logger.info("reloaded %d API keys", len(self._quotas))

    def _accept(self, entries: Iterable[KeyEntry]) -> None:
        """Replace the keys; an unchanged entry keeps its used quota."""
        quotas: dict[KeyEntry, Quota] = {}
        for entry in entries:
            owner = entry.sha256[:_OWNER_CHARS]
            quota = self._quotas.get(entry)
            quotas[entry] = quota or Quota(entry.name, entry, self._clock, self._shared, owner)
        self._quotas = quotas


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """Return what changes with a file, or None without one."""
    with suppress(OSError):
        if file is not None:
            stat = file.stat()
            return stat.st_mtime_ns, stat.st_size, stat.st_ino
    return None


def read_keys(file: Path) -> list[KeyEntry]:
    """Return the keys of a file; raise `SettingsError` if it is unreadable or malformed."""
    try:
        return parse_keys(file.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{_VARIABLE}={str(file)!r} cannot be read: {error}") from error


def parse_keys(text: str) -> list[KeyEntry]:
    """Return the entries of a file; raise `SettingsError` with the number of an invalid one."""
    entries: dict[str, KeyEntry] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        try:
            entry = _entry(line, number)
            if entry.sha256 in entries:
                raise ValueError("its SHA-256 repeats that of an earlier entry")
        except ValueError as error:
            raise SettingsError(f"{_VARIABLE}: entry {number}: {error}") from None
        entries[entry.sha256] = entry
    return list(entries.values())


def _entry(line: str, number: int) -> KeyEntry:
    """Return the key of a line; raise `ValueError`."""
    sha256, *words = line.split()
    if not _SHA256.fullmatch(sha256.lower()):
        raise ValueError("it must start with a SHA-256 of 64 hexadecimal digits")
    options = dict(word.partition("=")[::2] for word in words)
    if not options.keys() <= set(_OPTIONS) or len(options) < len(words):
        raise ValueError(f"unknown or repeated option; the options are {', '.join(_OPTIONS)}")
    try:
        return KeyEntry.model_validate(
            {"name": f"key-{number}", **options, "sha256": sha256.lower()}
        )
    except ValidationError as error:
        rejected = rejected_field(error)
        raise ValueError(f"invalid {rejected.name}: {rejected.reason}") from None
