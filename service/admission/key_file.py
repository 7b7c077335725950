"""The file of API keys: one key a line, its SHA-256, then what it is called and may ask for.

    HASH
    HASH name=batch requests_per_minute=60 megapixels_per_minute=100 max_concurrent=4

Every option may be left out. Nothing of a line is told in an error: it may be a key by mistake.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.admission.quotas import UNLIMITED, CallerLimits
from service.admission.rate_limits import Clock
from service.settings import SettingsError, variable
from service.validation import rejected_field

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY_S = 1.0
_VARIABLE = variable("api_keys_file")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of the file."""

    sha256: str  # of the key, hexadecimal
    name: str  # for messages; those of one name share what is shared fairly
    limits: CallerLimits = UNLIMITED


class KeyFile:
    """A file of keys, and whether it has changed since it was read."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._looked_s = clock()
        self._state: tuple[int, int, int] | None = None

    def read(self) -> tuple[KeyEntry, ...]:
        """Return the keys; raise `SettingsError` for a file that cannot be read and for a line that is no key."""
        self._state = self._state_now()
        try:
            text = self._path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{_VARIABLE}={str(self._path)!r} cannot be read: {error}") from error
        return parse_keys(text)

    def has_changed(self) -> bool:
        """Say whether the file is another than when it was read, looking at most once a second."""
        if self._clock() - self._looked_s < _LOOK_EVERY_S:
            return False
        self._looked_s = self._clock()
        return self._state_now() != self._state

    def _state_now(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)
    megapixels_per_minute: int | None = Field(None, ge=1, le=1_000_000)
    max_concurrent: int | None = Field(None, ge=1, le=10_000)


def parse_keys(text: str) -> tuple[KeyEntry, ...]:
    """Return the entries of a file's text; raise `SettingsError` with the number of a bad one."""
    entries: dict[str, KeyEntry] = {}
    for number, line in enumerate(filter(None, map(str.strip, text.splitlines())), 1):
        try:
            entry = _entry(line, number)
        except ValueError as error:
            raise SettingsError(f"{_VARIABLE}: entry {number} {error}") from None
        if entry.sha256 in entries:
            raise SettingsError(f"{_VARIABLE}: entry {number} has the SHA-256 of one before it")
        entries[entry.sha256] = entry
    return tuple(entries.values())


def _entry(line: str, number: int) -> KeyEntry:
    sha256, *words = line.split()
    if not _SHA256.fullmatch(sha256.lower()):
        raise ValueError("is not a SHA-256 of 64 hexadecimal digits")
    options = _options(words)
    limits = CallerLimits(options.requests_per_minute, options.megapixels_per_minute, options.max_concurrent)
    return KeyEntry(sha256.lower(), options.name or f"key-{number}", limits)


def _options(words: list[str]) -> _Options:
    values = dict(word.partition("=")[::2] for word in words)
    if not values.keys() <= _Options.model_fields.keys() or len(values) < len(words):
        raise ValueError(f"has an option that is unknown or there twice; there are {', '.join(_Options.model_fields)}")
    try:
        return _Options.model_validate(values)
    except ValidationError as error:
        rejected = rejected_field(error)
        raise ValueError(f"has a bad {rejected.name}: {rejected.reason}") from None
