"""Who may ask: API keys, kept as SHA-256 in a file, compared in constant time."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from service.errors import Unauthorized
from service.settings import SettingsError

_HASH = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The hashes of the keys that are accepted; none at all means that no key is asked for."""

    def __init__(self, hashes: Sequence[str] | None) -> None:
        self._hashes = hashes

    @classmethod
    def load(cls, file: Path | None) -> Self:
        """Read one hash a line; raise `SettingsError` for a line that is none."""
        if file is None:
            return cls(None)
        try:
            lines = [line.strip().lower() for line in file.read_text(encoding="ascii").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"DIPTYCH_API_KEYS_FILE={str(file)!r} cannot be read: {error}") from error
        for number, line in enumerate(lines, 1):
            if not _HASH.fullmatch(line):
                raise SettingsError(f"DIPTYCH_API_KEYS_FILE: entry {number} is not a SHA-256 of 64 hexadecimal digits")
        return cls(lines)

    def check(self, authorization: str | None) -> None:
        """Raise `Unauthorized` unless the Authorization header carries an accepted key."""
        if self._hashes is None:
            return
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        is_known = [hmac.compare_digest(digest, known) for known in self._hashes]
        if scheme.lower() != "bearer" or not any(is_known):
            given = "a key that is not accepted" if key else "no key"
            raise Unauthorized(f"{given} was sent; send an accepted one as Authorization: Bearer KEY")
