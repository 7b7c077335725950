"""API keys: a re-read file of their SHA-256 hashes, their quotas, the rate of wrong ones.

A line of the file is one key, with optional limits:

    HASH
    HASH name=batch requests_per_minute=60 megapixels_per_minute=100 max_concurrent=4

Errors and logs never quote a line: it may hold a key by mistake. Rates are token buckets with one
rate (RFC 2697): a bucket is full at the start and holds one minute's refill.

Each gateway process counts on its own: deploy/haproxy/front.cfg sends all requests of a key to one.
"""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Self

from cachetools import LRUCache
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.admission.addresses import client_of
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.settings import SettingsError, variable
from service.validation import rejected_field

logger = logging.getLogger(__name__)

Clock = Callable[[], float]  # seconds, such as time.monotonic

_PIXELS_PER_MEGAPIXEL = 1_000_000
_CHECK_INTERVAL_S = 1.0
_VARIABLE = variable("api_keys_file")
_MAX_WRONG_KEYS_PER_MINUTE = 10  # per address
_MAX_ADDRESSES = 10_000
_MAX_FILE_CHARS = 10_000_000
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

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
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
    """The limits of one API key, and what this process has used of them."""

    def __init__(
        self,
        name: str,
        limits: QuotaLimits,
        clock: Clock = time.monotonic,
        owner: str = "anonymous",
    ) -> None:
        self.name = name
        self.owner = owner  # owns stored files: unlike the name, it is unique to the key
        self._max_concurrent = limits.max_concurrent
        self._num_concurrent = 0
        self._requests: TokenBucket | None = None
        self._megapixels: TokenBucket | None = None
        if limits.requests_per_minute is not None:
            self._requests = TokenBucket(limits.requests_per_minute, clock)
        if limits.megapixels_per_minute is not None:
            self._megapixels = TokenBucket(limits.megapixels_per_minute, clock)

    def take_request(self, num_requests: int = 1) -> None:
        """Count requests; raise `Overloaded`, or `InvalidRequest` beyond a whole minute."""
        if self._requests is None:
            return
        limit = f"{self._requests.per_minute:g} requests per minute"
        if num_requests > self._requests.per_minute:
            counted = f"its tiles count as {num_requests} requests"
            raise InvalidRequest(f"{counted}; the key {self.name!r} may send {limit}", "tiles")
        if wait_s := self._requests.take(num_requests):
            raise self._exceeded(limit, wait_s)

    def take_pixels(self, num_pixels: int) -> None:
        """Count one image; raise `Overloaded`, or `image_too_large` beyond a minute's quota."""
        if self._megapixels is None:
            return
        megapixels = num_pixels / _PIXELS_PER_MEGAPIXEL
        allowed = self._megapixels.per_minute
        if megapixels > allowed:
            problem = f"the image has {megapixels:g} megapixels"
            message = f"{problem}; the key {self.name!r} may send {allowed:g} per minute"
            raise ServiceError(message, "image", "image_too_large")
        if wait_s := self._megapixels.take(megapixels):
            raise self._exceeded(f"{allowed:g} megapixels per minute", wait_s)

    def begin_request(self) -> None:
        """Count a request until `end_request`; raise `Overloaded`."""
        most = self._max_concurrent
        if most is not None and self._num_concurrent >= most:
            raise self._exceeded(f"{most} concurrent requests", 1)
        self._num_concurrent += 1

    def end_request(self) -> None:
        self._num_concurrent -= 1

    def _exceeded(self, limit: str, wait_s: float) -> Overloaded:
        return Overloaded(f"the key {self.name!r} has reached its limit of {limit}", wait_s)


UNLIMITED = Quota("anonymous", NO_LIMITS)  # of requests that need no API key and take no place


class ApiKeys:
    """The accepted keys and their quotas; with `entries` None every request is accepted."""

    def __init__(
        self,
        entries: Iterable[KeyEntry] | None,
        file: Path | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._file = file
        self._clock = clock
        self._is_open = entries is None
        self._quotas: dict[KeyEntry, Quota] = {}
        # keys: the addresses that last sent one
        self._wrong_keys: LRUCache[str, TokenBucket] = LRUCache(_MAX_ADDRESSES)
        self._checked_s = clock()
        self._version = _version(file)
        self._accept(entries or ())

    @classmethod
    def load(cls, path: Path | None, clock: Clock = time.monotonic) -> Self:
        """Read the keys; raise `SettingsError` for an unreadable or malformed file."""
        if path is None:
            return cls(None)
        keys = cls((), path, clock)  # notes the file's version before it is read
        keys._accept(parse_keys(_text(path)))
        return keys

    def check(self, authorization: str | None, address: str) -> Quota:
        """Return a caller's quota; raise `unauthorized`, or `Overloaded` after many wrong keys.

        Without API keys a client is its address; nothing of it is kept.
        """
        if self._is_open:
            return Quota(client_of(address) or UNLIMITED.name, NO_LIMITS)
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
        if key:
            self._count_wrong_key(address)
        problem = "the API key is not accepted" if key else "no API key was sent"
        hint = "send a valid key in the header Authorization: Bearer KEY"
        raise ServiceError(f"{problem}; {hint}", code="unauthorized")

    def _count_wrong_key(self, address: str) -> None:
        new_bucket = TokenBucket(_MAX_WRONG_KEYS_PER_MINUTE, self._clock)
        if wait_s := self._wrong_keys.setdefault(client_of(address), new_bucket).take(1):
            limit = f"{_MAX_WRONG_KEYS_PER_MINUTE} wrong API keys per minute"
            problem = f"this address has reached the limit of {limit}"
            raise Overloaded(f"{problem}; send a valid key", wait_s)

    def _reload_if_changed(self) -> None:
        if self._file is None or self._clock() - self._checked_s < _CHECK_INTERVAL_S:
            return
        self._checked_s = self._clock()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            text = _text(self._file)
            if not text.endswith("\n"):
                problem = "its last line has no newline, as while the file is written"
                raise SettingsError(f"{_VARIABLE}: {problem}; replace it by a rename")
            self._accept(parse_keys(text))
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
            quotas[entry] = quota or Quota(entry.name, entry, self._clock, owner)
        self._quotas = quotas


def _version(file: Path | None) -> tuple[int, int, int] | None:
    with suppress(OSError):
        if file is not None:
            stat = file.stat()
            return stat.st_mtime_ns, stat.st_size, stat.st_ino
    return None


def _text(file: Path) -> str:
    try:
        with file.open(encoding="ascii") as opened:
            text = opened.read(_MAX_FILE_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{_VARIABLE}={str(file)!r} cannot be read: {error}") from error
    if len(text) > _MAX_FILE_CHARS:
        raise SettingsError(f"{_VARIABLE}={str(file)!r} is larger than {_MAX_FILE_CHARS} bytes")
    return text


def parse_keys(text: str) -> list[KeyEntry]:
    """Return the entries of a file; raise `SettingsError` with the number of an invalid one."""
    entries: dict[str, KeyEntry] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        sha256, *words = line.split()
        options = dict(word.partition("=")[::2] for word in words)
        problem = None
        if not options.keys() <= set(_OPTIONS) or len(options) < len(words):
            problem = f"unknown or repeated option; the options are {', '.join(_OPTIONS)}"
        elif sha256.lower() in entries:
            problem = "its SHA-256 repeats that of an earlier entry"
        try:
            entry = KeyEntry.model_validate(
                {"name": f"key-{number}", **options, "sha256": sha256.lower()}
            )
        except ValidationError as error:
            rejected = rejected_field(error)
            problem = problem or f"invalid {rejected.name}: {rejected.reason}"
        if problem is not None:
            raise SettingsError(f"{_VARIABLE}: entry {number}: {problem}")
        entries[entry.sha256] = entry
    return list(entries.values())
