"""API keys without a file and in one."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

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


def write_keys(file: Path, options: Mapping[str, str]) -> str:
    """Write a file of keys, each with its options; return its path as a setting."""
    file.write_text("".join(f"{hash_of(key)} {words}\n" for key, words in options.items()))
    return str(file)
