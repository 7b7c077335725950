"""The adapters of a runner follow a folder: added, replaced, kept for the calls in flight, freed,
refused once.
"""

import json
import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from runners.adapters import hot_loading
from runners.adapters.hot_loading import HotAdapters
from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.catalog import FLORENCE
from tests.support.fake_service import served
from tests.support.waiting import wait_until
from wire.artifacts import adapter_folder
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    ENTRY_FILE,
    MAX_ADAPTERS,
    WEIGHTS_FILE,
    AdapterFolder,
    AdapterLimits,
    AdapterScan,
    adapter_build_key,
)
from wire.artifacts.manifest import DECODER_FILE, Manifest, sha256_of

LAYER = "model.language_model.layers.0.self_attn.q_proj"
CALL_TIMEOUT_S = 60
TIMEOUT_S = 30.0
LIMITS = AdapterLimits(max_rank=16, max_bytes=10_000, max_total_bytes=8_000)


class FakeAdapters(Adapters):
    """Holds the keys of adapters."""

    failure: Exception | None = None
    released: threading.Event | None = None  # adding waits for it

    def add(
        self, adapter: str, tensors: Mapping[str, Tensor], max_total_bytes: int | None = None
    ) -> None:
        assert tensors.keys() == {f"{LAYER}.down", f"{LAYER}.up"}
        assert adapter not in self.keys
        assert max_total_bytes == LIMITS.max_total_bytes
        if self.failure is not None:
            raise self.failure
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
    aliases: tuple[str, ...] = ()
    adapters: HotAdapters = field(init=False)

    def __post_init__(self) -> None:
        self.follow(TIMEOUT_S)

    def follow(self, read_timeout_s: float) -> None:
        """Restart with another limit."""
        options = runner_options(FLORENCE.id, Settings(), ())
        self.adapters = HotAdapters(
            AdapterScan(self.folder, now=lambda: 1e12),
            self.base,
            self.base_folder,
            replace(
                options,
                limits=replace(options.limits, stuck_after_s=read_timeout_s),
                aliases=self.aliases,
                adapter_limits=LIMITS,
                timeout_s=CALL_TIMEOUT_S,
            ),
            now=lambda: self.time_s,
        )

    def write(self, name: str, value: float = 1.0, **config: object) -> str:
        """Write an adapter; return its key."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        base = {"base_model_name_or_path": self.base.model_id}
        values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | base | config
        (path / CONFIG_FILE).write_text(json.dumps(values))
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


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    for name in ("adapters", "base"):
        (tmp_path / name).mkdir()
    save_file({f"{LAYER}.weight": torch.zeros(4, 6)}, tmp_path / "base" / DECODER_FILE)
    return Watched(tmp_path / "adapters", tmp_path / "base", served(FLORENCE).manifest)


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_removed_adapter_stays_for_its_calls(watched: Watched) -> None:
    key = watched.write("a")
    assert watched.update() == {key}
    shutil.rmtree(watched.folder / "a")
    watched.update()
    watched.write("a")  # comes back in time
    for _ in range(2):
        assert watched.update(CALL_TIMEOUT_S) == {key}
    shutil.rmtree(watched.folder / "a")
    assert watched.update() == {key}
    assert watched.update(CALL_TIMEOUT_S) == {key}
    assert watched.update() == frozenset()


def test_a_replaced_adapter_is_another_build(watched: Watched) -> None:
    before = watched.write("a")
    watched.update()
    after = watched.write("a", 2.0)
    assert watched.update() == {before, after}
    assert watched.update(CALL_TIMEOUT_S + 1) == {after}


def test_an_adapter_changed_while_read_is_not_loaded(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.write("a")
    keys: list[str] = []

    def read_and_replace(*arguments: Any) -> dict[str, torch.Tensor]:
        tensors = read_adapter(*arguments)
        if not keys:
            keys.append(watched.write("a", 2.0))
        return tensors

    monkeypatch.setattr(hot_loading, "read_adapter", read_and_replace)
    assert watched.update() == frozenset()
    assert watched.update() == set(keys)


def test_adapters_of_other_bases_are_ignored(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    key = watched.write("a", base_model_name_or_path="an/alias")
    watched.write("b", base_model_name_or_path=None)
    assert watched.update() == frozenset()
    assert not watched.adapters.refused
    assert not caplog.records
    watched.aliases = ("an/alias",)
    watched.follow(TIMEOUT_S)
    assert watched.update() == {key}


def test_a_bad_adapter_is_refused_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    bad = watched.write("bad", r=17)
    good = watched.write("good")
    for _ in range(3):
        assert watched.update() == {good}
    assert watched.adapters.refused.keys() == {bad}
    (line,) = errors_of(caplog)
    assert line.startswith(f"the adapter bad of {FLORENCE.id} is refused: ")
    assert line.endswith("a rank is 17; at most 16 is supported")
    repaired = watched.write("bad", 3.0)
    assert watched.update() == {good, repaired}
    assert not watched.adapters.refused


def test_out_of_memory_refuses_the_adapter(watched: Watched) -> None:
    key = watched.write("a")
    watched.loaded.failure = torch.OutOfMemoryError("none left")
    watched.update()
    assert watched.adapters.refused == {key: "it cannot be loaded: OutOfMemoryError"}


def test_adapters_above_the_maximum_wait_for_a_place(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    *first, last = (
        watched.write(f"adapter-{value:03}", value) for value in range(MAX_ADAPTERS + 1)
    )
    for _ in range(3):
        assert watched.update() == frozenset(first)
    assert f"{MAX_ADAPTERS} adapters of {FLORENCE.id} are loaded" in watched.adapters.refused[last]
    assert len(errors_of(caplog)) == 1
    shutil.rmtree(watched.folder / "adapter-000")
    watched.update()
    assert watched.update(CALL_TIMEOUT_S + 1) == frozenset([*first[1:], last])


def test_adapters_of_the_store_are_left_alone(watched: Watched) -> None:
    key = watched.write("a")
    watched.loaded.keys = frozenset({key})
    assert watched.update() == {key}
    assert not watched.adapters.refused
    shutil.rmtree(watched.folder / "a")
    watched.update()
    assert watched.update(CALL_TIMEOUT_S + 1) == {key}


@pytest.mark.parametrize(("file", "text"), [(CONFIG_FILE, "[" * 100_000), (ENTRY_FILE, "- a")])
def test_unreadable_files_keep_no_other_adapter_out(
    watched: Watched, caplog: pytest.LogCaptureFixture, file: str, text: str
) -> None:
    watched.write("bad")
    (watched.folder / "bad" / file).write_text(text)
    good = watched.write("good", 2.0)
    for _ in range(3):
        assert watched.update() == {good}
    assert errors_of(caplog) == []  # the gateway logs it


def test_hanging_files_are_refused(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    read = AdapterFolder.hashes

    def hashes(folder: AdapterFolder, max_bytes: int) -> dict[str, str]:
        assert folder.name != "a" or released.wait(TIMEOUT_S)
        return read(folder, max_bytes)

    monkeypatch.setattr(AdapterFolder, "hashes", hashes)
    watched.write("a")
    good = watched.write("b", 2.0)
    watched.follow(2)
    for _ in range(3):
        assert watched.update() == {good}
    released.set()
    (line,) = errors_of(caplog)
    assert line == "the adapter a is refused: its files could not be read within 2 s"


def test_a_runner_waits_for_half_of_its_start(
    watched: Watched, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_folder, "_SETTLED_AFTER_S", 0.0)
    watched.write("a")
    options = replace(
        runner_options(FLORENCE.id, Settings(), ()),
        adapters_folder=watched.folder,
        adapter_limits=LIMITS,
        start_timeout_s=0.4,
    )
    watched.loaded.released = threading.Event()
    scan = AdapterScan(watched.folder)
    HotAdapters(scan, watched.base, watched.base_folder, options).watch(watched.loaded)
    assert "not all loaded after 0.2 s" in caplog.messages[-1]
    watched.loaded.released.set()
    wait_until(lambda: watched.loaded.keys != frozenset())


def test_adapters_are_added_in_the_stream_of_the_decoder(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass would otherwise read columns of the pool while they are written."""
    devices: list[str] = []
    monkeypatch.setattr(hot_loading, "use_decoder_stream", devices.append)
    one_update = SimpleNamespace(sleep=lambda _: threading.Event().wait())
    monkeypatch.setattr(hot_loading, "time", one_update)
    key = watched.write("a")
    watched.adapters.watch(watched.loaded)
    assert devices == ["cpu"]
    assert watched.loaded.keys == {key}
