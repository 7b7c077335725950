"""Keeps a decoder's adapters equal to those of a folder (wire/artifacts/adapter_folder.py).

    found       its base is this runner's model: read, checked against the base, added
    replaced    other files make another build: both stay until no call can name the one before
    gone        removed as long after its folder as a call may take; calls that named it have ended
    refused     logged once; the same files are read again only after an adapter has been freed

Each adapter is read in a separate thread, which is abandoned if it takes too long: no adapter can
hold up the others. Knows no requests: the gateway lists an adapter after this runner has reported
its key.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from runners.kv_cache import use_decoder_stream
from runners.options import RunnerOptions
from wire.artifacts.adapter_folder import (
    MAX_ADAPTERS,
    SCAN_EVERY_S,
    AdapterFolder,
    AdapterScan,
    adapter_build_key,
    reason_of,
)
from wire.artifacts.manifest import DECODER_FILE, ArtifactError, Manifest

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")


class HotAdapters:
    """The adapters of one base in a watched folder."""

    def __init__(
        self,
        scan: AdapterScan,
        base: Manifest,
        base_folder: Path,
        options: RunnerOptions,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scan = scan
        self._base = base
        self._base_decoder = base_folder / DECODER_FILE
        self._options = options
        self._limits = options.adapter_limits
        self._read_timeout_s = min(options.limits.stuck_after_s, options.start_timeout_s / 2)
        self._now = now
        # build keys of the current versions, None for adapters of another base
        self._keys: dict[AdapterFolder, str | None] = {}
        self._added: dict[str, float | None] = {}  # keys: the time when the folder was gone
        self.refused: dict[str, str] = {}  # current versions by key: the reason

    def watch(self, loaded: Adapters) -> None:
        """Update `loaded` once a second in a thread; return after the first, or the timeout."""
        is_updated = threading.Event()

        def run() -> None:
            use_decoder_stream(loaded.device)
            while True:
                try:
                    self.update(loaded)
                except Exception:  # a defect must not end the watch
                    logger.exception("the adapters of %s could not be updated", self._base.model_id)
                is_updated.set()
                time.sleep(SCAN_EVERY_S)

        threading.Thread(target=run, name=f"adapters of {self._base.model_id}", daemon=True).start()
        if not is_updated.wait(self._read_timeout_s):
            message = "the adapters of %s are not all loaded after %g s; the runner starts"
            logger.error(message, self._base.model_id, self._read_timeout_s)

    def update(self, loaded: Adapters) -> None:
        """Add new adapters to `loaded`, and remove those that no call can name any more."""
        known = self._keys
        self._keys = {}
        folders: dict[str, AdapterFolder] = {}  # those of this base, by key
        for folder in self._scan.scan().values():
            key = known[folder] if folder in known else self._key(folder)
            self._keys[folder] = key
            if key is not None:
                folders[key] = folder
        self.refused = {key: reason for key, reason in self.refused.items() if key in folders}
        self._remove_gone(loaded, folders)
        for key, adapter in folders.items():
            if not (key in self._added or key in self.refused or key in loaded.keys):
                self._add(loaded, key, adapter)

    def _key(self, adapter: AdapterFolder) -> str | None:
        def read() -> str | None:
            if not adapter.is_adapter_of(self._base, self._options.aliases):
                return None
            return adapter_build_key(adapter.hashes(self._limits.max_bytes), self._base.build_key)

        try:
            return _in_time(read, self._read_timeout_s)
        except ArtifactError:  # the gateway logs the same
            return None
        except Exception as error:  # files that cannot be read in time, or a defect
            message = "the adapter %s is refused: %s"
            is_defect = not isinstance(error, TimeoutError)
            logger.error(message, adapter.name, reason_of(error), exc_info=is_defect)
            return None

    def _remove_gone(self, loaded: Adapters, folders: Mapping[str, AdapterFolder]) -> None:
        now_s = self._now()
        for key, gone_s in list(self._added.items()):
            if key in folders:
                self._added[key] = None
            elif gone_s is None:
                self._added[key] = now_s
            elif now_s - gone_s > self._options.timeout_s:
                loaded.remove(key)
                del self._added[key]
                logger.info("an adapter of %s is freed: build %.8s", self._base.model_id, key)
                self.refused.clear()  # one that had no room may have it now

    def _add(self, loaded: Adapters, key: str, adapter: AdapterFolder) -> None:
        model_id = self._base.model_id
        try:
            if len(self._added) >= MAX_ADAPTERS:
                raise ArtifactError(
                    f"{MAX_ADAPTERS} adapters of {model_id} are loaded, no more fit"
                )
            read = partial(read_adapter, adapter.path, self._base_decoder, self._limits)
            tensors = _in_time(read, self._read_timeout_s)
            if not adapter.is_current():
                return
            loaded.add(key, tensors, self._limits.max_total_bytes)
            self._added[key] = None
            logger.info("the adapter %s of %s is loaded: build %.8s", adapter.name, model_id, key)
        # too little memory, for example: the others stay, and the watch continues
        except Exception as error:
            is_known = isinstance(error, ArtifactError | TimeoutError)
            reason = f"it cannot be loaded: {type(error).__name__}"
            self.refused[key] = reason_of(error) if is_known else reason
            message = "the adapter %s of %s is refused: %s"
            names = adapter.name, model_id, self.refused[key]
            logger.error(message, *names, exc_info=not is_known)


def _in_time(read: Callable[[], _Read], limit_s: float) -> _Read:
    result: Future[_Read] = Future()

    def run() -> None:
        try:
            result.set_result(read())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="files of an adapter", daemon=True).start()
    try:
        return result.result(limit_s)
    except TimeoutError as error:
        raise TimeoutError(f"its files could not be read within {limit_s:g} s") from error
