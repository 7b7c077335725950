"""A folder of LoRA adapters, which gateway and runners watch: each sub-folder is one in PEFT's format.

    NAME/adapter_config.json
    NAME/adapter_model.safetensors
    NAME/diptych.yaml                   optional: keys of a catalog entry (tasks/catalog.py), such as adapter_of

All processes derive the same build key from the same files. While a sub-folder is written, it counts as it was before.
Reads no weights (runners/artifacts/peft_adapter.py).
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runners.artifacts.manifest import ArtifactError, Manifest, sha256_of

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
ENTRY_FILE = "diptych.yaml"
DOWN, UP = ".down", ".up"  # after the name of a layer: the matrices of an adapter as runners load them
MAX_ADAPTERS = 64  # of one base
SCAN_EVERY_S = 1.0

_FORMAT = 1  # increment when the same files become other matrices
_SETTLED_AFTER_S = 1.0  # without a change
_NAME = re.compile(r"[^.].*")  # others are temporary or hidden

_FileVersion = tuple[int, int, int, int]  # modification and change time in ns, size, inode


class AdapterError(ArtifactError):
    """A folder is not an adapter that can be served over its base."""


def adapter_build_key(hashes: Mapping[str, str], base_build_key: str) -> str:
    """Return the sha256, hexadecimal, over all that decides the matrices of an adapter: PEFT's files and its base."""
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

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of PEFT's files by name; raise `AdapterError` if they cannot be read."""
        try:
            return {name: sha256_of(self.path / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        except OSError as error:
            raise AdapterError(f"{self.path} cannot be read: {error}") from error

    def entry(self) -> dict[str, Any]:
        """Return the keys of its catalog entry; raise `AdapterError` if the file is no mapping in YAML."""
        if ENTRY_FILE not in dict(self.files):
            return {}
        path = self.path / ENTRY_FILE
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise AdapterError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise AdapterError(f"{path} must have keys of a catalog entry, such as adapter_of and tasks")
        return values

    def base_name(self) -> str:
        """Return the name of its base: `adapter_of` of the entry, else PEFT's `base_model_name_or_path`."""
        if (declared := self.entry().get("adapter_of")) is not None:
            return str(declared)
        try:
            return str(json.loads((self.path / CONFIG_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AdapterError(f"{self.path / CONFIG_FILE} names no base_model_name_or_path: {error!r}") from error

    def is_adapter_of(self, base: Manifest) -> bool:
        """Return True if the name of its base is the id or the source of `base`."""
        return self.base_name() in (base.model_id, base.source)

    def is_current(self) -> bool:
        """Return True if the files have not changed since this version was found."""
        return _version(self.path) == self.files


class AdapterScan:
    """Finds the adapters of a folder."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._seen: dict[str, AdapterFolder] = {}  # by the last scan, written or not
        self._settled: dict[str, AdapterFolder] = {}
        self._is_readable = True

    def scan(self) -> dict[str, AdapterFolder]:
        """Return the complete adapters by name, in the order of names.

        Of one that is being written, the version before is returned, if any. While the folder cannot be read, nothing
        changes.
        """
        try:
            paths = sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
        except OSError as error:
            if self._is_readable:
                logger.error("the adapters are unchanged, because their folder cannot be read: %s", error)
            self._is_readable = False
            return dict(self._settled)
        self._is_readable = True
        found = {path.name: AdapterFolder(path, files) for path in paths if (files := _version(path))}
        settled = {name: each if self._is_settled(each) else self._settled.get(name) for name, each in found.items()}
        self._seen = found
        self._settled = {name: each for name, each in settled.items() if each is not None}
        return dict(self._settled)

    def _is_settled(self, adapter: AdapterFolder) -> bool:
        """Return True if its files are as in the last scan, or old: a renamed sub-folder is complete at once."""
        changed_s = max(max(version[:2]) for _, version in adapter.files) / 1e9
        return self._seen.get(adapter.name) == adapter or self._now() - changed_s >= _SETTLED_AFTER_S


def _version(path: Path) -> tuple[tuple[str, _FileVersion], ...]:
    """Return the versions of the files of an adapter; empty if one that is required is missing."""
    versions: dict[str, _FileVersion] = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE, ENTRY_FILE):
        try:
            stat = (path / name).stat()
        except OSError:
            if name != ENTRY_FILE:
                return ()
            continue
        versions[name] = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
    return tuple(versions.items())
