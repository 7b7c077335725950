"""A folder of LoRA adapters in PEFT's format, watched by gateway and runners.

    NAME/adapter_config.json
    NAME/adapter_model.safetensors
    NAME/diptych.yaml                   optional: keys of a catalog entry (tasks/catalog.py), such
                                        as adapter_of

All processes derive the same build key from the same files. While a sub-folder is written, it
counts as it was before. The files are foreign data: they are opened without waiting, bounded in
size, and each failure is an `ArtifactError`. Reads no weights (runners/adapters/peft.py).
"""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from wire.artifacts.manifest import ArtifactError, Manifest

logger = logging.getLogger(__name__)

CONFIG_FILE = "adapter_config.json"  # PEFT's name
WEIGHTS_FILE = "adapter_model.safetensors"  # PEFT's name
ENTRY_FILE = "diptych.yaml"
# Suffixes of a layer's name: the matrices of an adapter as runners load them
DOWN = ".down"
UP = ".up"
MAX_ADAPTERS = 64  # per base
SCAN_EVERY_S = 1.0
MAX_CONFIG_BYTES = 1_000_000  # PEFT's may name every layer
MAX_ENTRY_BYTES = 16_384

_FORMAT = 1  # increment when the same files become other matrices
_SETTLED_AFTER_S = 1.0  # time without a change
_MAX_REASON_CHARS = 500
_MAX_ENTRY_DEPTH = 5
_AT_ONCE = os.O_NONBLOCK | os.O_NOCTTY

_FileVersion = tuple[int, int, int, int]  # modification and change time in ns, size, inode


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """The bounds of the adapters of one base; the export has these defaults."""

    max_rank: int = 512
    max_bytes: int = 1_000_000_000  # one adapter: its weights file, and its weights in float32
    # the matrices of a folder's adapters in a runner: four of the maximum size, dozens of rank 16
    max_total_bytes: int = 4_000_000_000


def adapter_build_key(hashes: Mapping[str, str], base_build_key: str) -> str:
    """Return the sha256, hexadecimal, over all that decides the matrices of an adapter: PEFT's
    files and its base.
    """
    inputs = {"adapter_format": _FORMAT, "files": hashes, "base": base_build_key}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """One version of a sub-folder; another version of the same sub-folder is not equal."""

    path: Path
    files: tuple[tuple[str, _FileVersion], ...]

    @property
    def name(self) -> str:
        return self.path.name

    def hashes(self, max_bytes: int) -> dict[str, str]:
        """Return the sha256 of PEFT's files by name; raise `ArtifactError`."""
        bounds = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: max_bytes}
        hashes: dict[str, str] = {}
        for name, bound in bounds.items():
            with open_file(self.path / name, bound) as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashes

    def entry(self) -> dict[str, Any]:
        """Return the keys of its catalog entry; raise `ArtifactError`."""
        if ENTRY_FILE not in dict(self.files):
            return {}
        return _read_mapping(self.path / ENTRY_FILE, MAX_ENTRY_BYTES, _parsed_yaml)

    def base_name(self) -> str:
        """Return its base: `adapter_of` of the entry, else PEFT's `base_model_name_or_path`."""
        name = self.entry().get("adapter_of")
        if name is None:
            name = read_config(self.path).get("base_model_name_or_path")
        if not isinstance(name, str):
            raise ArtifactError(f"{self.path} has no name of a base: {name!r:.80}")
        return name

    def is_adapter_of(self, base: Manifest, aliases: Sequence[str]) -> bool:
        """Return True if its base is named by the id, the source or an alias of `base`."""
        return self.base_name() in (base.model_id, base.source, *aliases)

    def is_current(self) -> bool:
        return _version(self.path) == self.files


class AdapterScan:
    """Finds the adapters of a folder."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._scanned: dict[str, AdapterFolder] = {}  # found by the last scan, complete or not
        self._settled: dict[str, AdapterFolder] = {}
        self._is_readable = True

    def scan(self) -> dict[str, AdapterFolder]:
        """Return the complete adapters by name, in the order of names.

        Of one that is being written, the version before is returned, if any. While the folder
        cannot be read, nothing changes.
        """
        try:
            paths = sorted(self._folder.iterdir())
        except OSError as error:
            if self._is_readable:
                logger.error("the adapters' folder cannot be read, and they stay as are: %s", error)
            self._is_readable = False
            return dict(self._settled)
        self._is_readable = True
        adapters: dict[str, AdapterFolder] = {}
        settled: dict[str, AdapterFolder] = {}
        for path in paths:
            if path.name.startswith(".") or not (files := _version(path)):
                continue
            adapter = adapters[path.name] = AdapterFolder(path, files)
            changed_s = max(max(version[:2]) for _, version in files) / 1e9
            is_old = self._now() - changed_s >= _SETTLED_AFTER_S  # as a renamed folder is
            if is_old or self._scanned.get(path.name) == adapter:
                settled[path.name] = adapter
            elif path.name in self._settled:
                settled[path.name] = self._settled[path.name]
        self._scanned = adapters
        self._settled = settled
        return dict(settled)


def reason_of(error: Exception) -> str:
    """Return an error's message about foreign data: one line, bounded, no control characters."""
    words = " ".join(str(error).split())
    return "".join(char if char.isprintable() else "?" for char in words[:_MAX_REASON_CHARS])


@contextmanager
def open_file(path: Path, max_bytes: int) -> Iterator[BufferedReader]:
    """Open a regular file of at most `max_bytes` without waiting; raise `ArtifactError`."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{path} must be a regular file")
            if status.st_size > max_bytes:
                problem = f"has {status.st_size} bytes; at most {max_bytes} are allowed"
                raise ArtifactError(f"{path} {problem}")
            yield file
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's configuration; raise `ArtifactError` if it is not an object in JSON."""
    return _read_mapping(folder / CONFIG_FILE, MAX_CONFIG_BYTES, json.loads)


def _read_mapping(path: Path, max_bytes: int, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    with open_file(path, max_bytes) as file:
        text = file.read(max_bytes)
    try:
        values = parse(text)
    except Exception as error:  # PyYAML raises many, such as KeyError for a tag
        language = path.suffix[1:].upper()
        problem = f"cannot be read as {language}: {type(error).__name__}: {error}"
        raise ArtifactError(f"{path} {problem}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ArtifactError(f"{path} must be a mapping of names")
    return values


def _parsed_yaml(text: bytes) -> Any:
    """Parse a document; refuse references and deep nesting.

    With references a short document stands for gigabytes. PyYAML takes 9 s for 5,000 brackets;
    here parsing ends at the first few.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_ENTRY_DEPTH or isinstance(event, yaml.AliasEvent):
            allowed = f"references (*name) and more than {_MAX_ENTRY_DEPTH} levels"
            raise ValueError(f"{allowed} are not allowed")
    return yaml.safe_load(text)


def _version(path: Path) -> tuple[tuple[str, _FileVersion], ...]:
    """Return the versions of the files of an adapter; empty if one that is required is missing."""
    versions: dict[str, _FileVersion] = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE, ENTRY_FILE):
        file = path / name
        try:
            # a broken link is refused when it is read
            status = file.stat() if os.path.exists(file) else file.lstat()
        except OSError:
            if name != ENTRY_FILE:
                return ()
            continue
        versions[name] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    return tuple(versions.items())
