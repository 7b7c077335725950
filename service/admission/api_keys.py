"""Who may ask: API keys, kept as SHA-256 in a file, compared in constant time, read anew when the file changes."""

import hashlib
import hmac
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from service.admission.key_file import KeyEntry, KeyFile
from service.admission.quotas import ANYONE, Caller
from service.admission.rate_limits import Clock
from service.errors import Unauthorized
from service.settings import SettingsError

logger = logging.getLogger(__name__)


class ApiKeys:
    """The keys that are accepted, each with its caller; None means that no key is asked for."""

    def __init__(
        self, entries: Sequence[KeyEntry] | None, file: KeyFile | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._file = file
        self._clock = clock
        self._is_open = entries is None
        self._callers: dict[KeyEntry, Caller] = {}
        self._accept(entries or ())

    @classmethod
    def load(cls, path: Path | None, clock: Clock = time.monotonic) -> Self:
        """Read the keys; raise `SettingsError` for a file that is none of keys."""
        if path is None:
            return cls(None)
        file = KeyFile(path, clock)
        return cls(file.read(), file, clock)

    def caller(self, authorization: str | None) -> Caller | None:
        """Return who sent an Authorization header, or None if it carries no accepted key."""
        if self._is_open:
            return ANYONE
        self._follow_file()
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        # all are compared, lest the time tells which one it was
        found = [caller for entry, caller in self._callers.items() if hmac.compare_digest(digest, entry.sha256)]
        return found[0] if found and scheme.lower() == "bearer" else None

    def check(self, authorization: str | None) -> Caller:
        """Return who sent an Authorization header; raise `Unauthorized` unless it carries an accepted key."""
        caller = self.caller(authorization)
        if caller is None:
            given = "a key that is not accepted" if (authorization or "").partition(" ")[2] else "no key"
            raise Unauthorized(f"{given} was sent; send an accepted one as Authorization: Bearer KEY")
        return caller

    def _follow_file(self) -> None:
        """Take the keys of a file that has changed; one that is broken leaves them as they are."""
        if self._file is None or not self._file.has_changed():
            return
        try:
            self._accept(self._file.read())
        except SettingsError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("%d API keys read anew", len(self._callers))

    def _accept(self, entries: Sequence[KeyEntry]) -> None:
        """Replace the keys; an entry that is as it was keeps what it has used of its limits."""
        self._callers = {
            entry: self._callers.get(entry) or Caller(entry.name, entry.limits, self._clock) for entry in entries
        }
