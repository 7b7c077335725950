"""Keeps the adapters of a running decoder equal to those of a watched folder (runners/artifacts/adapter_folder.py).

    found       its base is this runner's model: read, checked against the base, added
    replaced    other files make another build: both stay until no call can name the one before
    gone        removed as long after its folder as a call may take; calls that named it have ended
    refused     logged once; the same files are not read again

Knows no requests: the gateway lists an adapter after this runner has reported its key.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from runners.artifacts.adapter_folder import (
    MAX_ADAPTERS,
    SCAN_EVERY_S,
    AdapterError,
    AdapterFolder,
    AdapterScan,
    adapter_build_key,
)
from runners.artifacts.manifest import DECODER_FILE, Manifest
from runners.artifacts.peft_adapter import read_adapter

logger = logging.getLogger(__name__)


class AdaptedDecoder(Protocol):
    """A decoder to which adapters can be added while it runs."""

    @property
    def adapter_keys(self) -> frozenset[str]:
        """The adapters that sequences may name."""
        ...

    def add_adapter(self, key: str, tensors: Mapping[str, Tensor]) -> None: ...

    def remove_adapter(self, key: str) -> None: ...


class HotAdapters:
    """The adapters of one base in a watched folder; a call takes at most `call_timeout_s`."""

    def __init__(
        self,
        scan: AdapterScan,
        base: Manifest,
        base_folder: Path,
        call_timeout_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scan = scan
        self._base = base
        self._base_decoder = base_folder / DECODER_FILE
        self._call_timeout_s = call_timeout_s
        self._now = now
        self._keys: dict[AdapterFolder, str | None] = {}  # of the current versions; None: of another base
        self._added: dict[str, float | None] = {}  # by key: the time since when its folder is gone
        self._refused: dict[str, str] = {}  # by key: the reason
        self._full = f"{MAX_ADAPTERS} adapters of {base.model_id} are loaded, the maximum; remove one to add another"

    @property
    def refused(self) -> Mapping[str, str]:
        """The reasons by key of the current versions that were refused."""
        return dict(self._refused)

    def watch(self, decoder: AdaptedDecoder) -> None:
        """Update `decoder` once a second in a thread that ends with the process."""

        def run() -> None:
            while True:
                time.sleep(SCAN_EVERY_S)
                try:
                    self.update(decoder)
                except Exception:  # a defect must not end the watch
                    logger.exception("the adapters of %s could not be updated", self._base.model_id)

        threading.Thread(target=run, name=f"adapters of {self._base.model_id}", daemon=True).start()

    def update(self, decoder: AdaptedDecoder) -> None:
        """Add new adapters to `decoder`, and remove those that no call can name any more."""
        found = self._scan.scan()
        self._keys = {each: self._keys[each] if each in self._keys else self._key(each) for each in found.values()}
        wanted = {key: adapter for adapter, key in self._keys.items() if key is not None}
        self._refused = {key: reason for key, reason in self._refused.items() if key in wanted}
        self._remove_gone(decoder, wanted)
        for key, adapter in wanted.items():
            if key not in self._added and key not in self._refused and key not in decoder.adapter_keys:
                self._add(decoder, key, adapter)

    def _key(self, adapter: AdapterFolder) -> str | None:
        """Return the build key of an adapter of this base; None for others, which another process refuses or adds."""
        try:
            is_own = adapter.is_adapter_of(self._base)
            return adapter_build_key(adapter.hashes(), self._base.build_key) if is_own else None
        except AdapterError:
            return None

    def _remove_gone(self, decoder: AdaptedDecoder, wanted: Mapping[str, AdapterFolder]) -> None:
        now_s = self._now()
        since = {key: None if key in wanted else (since_s or now_s) for key, since_s in self._added.items()}
        over = [key for key, since_s in since.items() if since_s is not None and now_s - since_s > self._call_timeout_s]
        for key in over:
            decoder.remove_adapter(key)
            logger.info("an adapter of %s is freed: build %.8s", self._base.model_id, key)
        self._added = {key: since_s for key, since_s in since.items() if key not in over}
        if over:
            self._refused = {key: reason for key, reason in self._refused.items() if reason != self._full}

    def _add(self, decoder: AdaptedDecoder, key: str, adapter: AdapterFolder) -> None:
        try:
            if len(self._added) >= MAX_ADAPTERS:
                raise AdapterError(self._full)
            tensors = read_adapter(adapter.path, self._base_decoder)
            if not adapter.is_current():
                return
            decoder.add_adapter(key, tensors)
        except AdapterError as error:
            self._refuse(key, adapter, str(error))
        except Exception as error:  # such as too little memory: the others stay, and the watch goes on
            logger.exception("the adapter %s cannot be loaded", adapter.name)
            self._refuse(key, adapter, f"it cannot be loaded: {type(error).__name__}")
        else:
            self._added[key] = None
            logger.info("the adapter %s of %s is loaded: build %.8s", adapter.name, self._base.model_id, key)

    def _refuse(self, key: str, adapter: AdapterFolder, reason: str) -> None:
        self._refused[key] = reason
        logger.error("the adapter %s of %s is refused: %s", adapter.name, self._base.model_id, reason)
