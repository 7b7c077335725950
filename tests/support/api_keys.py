"""API keys without a file."""

import hashlib

from service.admission.api_keys import ApiKeys, Clock, parse_keys


class FakeClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def api_keys(key: str, options: str = "", clock: Clock | None = None) -> ApiKeys:
    """Return keys that accept one, with the options of a line of the file."""
    entries = parse_keys(f"{hash_of(key)} {options}")
    return ApiKeys(entries) if clock is None else ApiKeys(entries, clock=clock)
