"""A watched folder of adapters, and adapters without tensors that follow it."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from runners.adapters.hot_loading import HotAdapters
from runners.adapters.low_rank import Adapters
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterFolder,
    AdapterLimits,
    AdapterScan,
    NoRoomError,
    adapter_build_key,
)
from wire.artifacts.manifest import Manifest, sha256_of

LAYER = "model.language_model.layers.0.self_attn.q_proj"
CALL_TIMEOUT_S = 60.0
TIMEOUT_S = 30.0
ADAPTER_BYTES = 80
LIMITS = AdapterLimits(max_rank=16, max_bytes=10_000, max_total_bytes=100 * ADAPTER_BYTES)


class FakeAdapters(Adapters):
    """Holds the keys of adapters."""

    failure: Exception | None = None
    released: threading.Event | None = None  # adding waits for it

    def add(
        self, adapter: str, tensors: Mapping[str, Tensor], max_total_bytes: int | None = None
    ) -> None:
        assert tensors.keys() == {f"{LAYER}.down", f"{LAYER}.up"}
        assert adapter not in self.keys
        assert max_total_bytes is not None
        if self.failure is not None:
            raise self.failure
        if (len(self.keys) + 1) * ADAPTER_BYTES > max_total_bytes:
            raise NoRoomError("no room")
        assert self.released is None or self.released.wait(TIMEOUT_S)
        self.keys |= {adapter}

    def remove(self, adapter: str) -> None:
        assert adapter in self.keys
        self.keys -= {adapter}


@dataclass(slots=True)
class Watched:
    """A folder of adapters, and the adapters that follow it."""

    folder: Path
    base_folder: Path
    base: Manifest
    loaded: FakeAdapters = field(default_factory=FakeAdapters)
    time_s: float = 1.0
    limits: AdapterLimits = LIMITS
    aliases: tuple[str, ...] = ()
    adapters: HotAdapters = field(init=False)

    def __post_init__(self) -> None:
        self.follow(AdapterScan(self.folder, now=lambda: 1e12))

    def follow(self, scan: AdapterScan, read_timeout_s: float = 30.0) -> None:
        """Restart with another scan."""
        self.adapters = HotAdapters(
            scan,
            self.base,
            self.aliases,
            self.base_folder,
            self.limits,
            CALL_TIMEOUT_S,
            read_timeout_s,
            now=lambda: self.time_s,
        )

    def write(self, name: str, value: float = 1.0, **config: object) -> str:
        """Write an adapter; return its key."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        given = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 2,
            "base_model_name_or_path": self.base.model_id,
        } | config
        (path / CONFIG_FILE).write_text(json.dumps(given))
        sides = {"A": torch.full((2, 6), float(value)), "B": torch.ones(4, 2)}
        weights = {
            f"base_model.model.{LAYER}.lora_{side}.weight": tensor for side, tensor in sides.items()
        }
        save_file(weights, path / WEIGHTS_FILE)
        hashes = {file: sha256_of(path / file) for file in (CONFIG_FILE, WEIGHTS_FILE)}
        return adapter_build_key(hashes, self.base.build_key)

    def update(self, after_s: float = 1.0) -> frozenset[str]:
        """Update after a time; return the keys that are loaded."""
        self.time_s += after_s
        self.adapters.update(self.loaded)
        return self.loaded.keys


@dataclass(frozen=True, slots=True)
class HangingFolder(AdapterFolder):
    """An adapter whose files are on a disk that does not answer."""

    released: threading.Event = field(default_factory=threading.Event, compare=False)

    def hashes(self, max_bytes: int) -> dict[str, str]:
        assert self.released.wait(TIMEOUT_S)
        return AdapterFolder.hashes(self, max_bytes)


class ScanWithHanging(AdapterScan):
    """Finds the adapters of a folder, of which one hangs."""

    def __init__(self, folder: Path, name: str) -> None:
        AdapterScan.__init__(self, folder, now=lambda: 1e12)
        self.released = threading.Event()
        self._name = name

    def scan(self) -> dict[str, AdapterFolder]:
        found = AdapterScan.scan(self)
        hanging = found[self._name]
        return found | {self._name: HangingFolder(hanging.path, hanging.files, self.released)}
