"""The adapters of a runner follow a folder: added, replaced, kept for the calls in flight, freed,
refused once.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runners.adapters import hot_loading
from runners.adapters.peft import read_adapter
from runners.model_worker import ModelWorker
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.catalog import FLORENCE
from tests.support.fake_service import served
from tests.support.waiting import wait_until
from tests.support.watched_adapters import (
    ADAPTER_BYTES,
    CALL_TIMEOUT_S,
    LAYER,
    LIMITS,
    ScanWithHanging,
    Watched,
)
from wire.artifacts import adapter_folder
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    ENTRY_FILE,
    MAX_ADAPTERS,
    WEIGHTS_FILE,
    AdapterScan,
)
from wire.artifacts.manifest import DECODER_FILE
from wire.runner_messages import EncodedImage


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    for name in ("adapters", "base"):
        (tmp_path / name).mkdir()
    save_file({f"{LAYER}.weight": torch.zeros(4, 6)}, tmp_path / "base" / DECODER_FILE)
    return Watched(tmp_path / "adapters", tmp_path / "base", served(FLORENCE).manifest)


def test_an_adapter_with_a_vision_part_is_refused_in_one_line_that_names_the_export(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write("a")
    path = watched.folder / "a" / WEIGHTS_FILE
    weights = load_file(path).items()
    moved = {name.replace("language_model", "vision_tower"): each for name, each in weights}
    save_file(moved, path)
    assert watched.update() == frozenset()
    (line,) = caplog.messages
    assert line.startswith(
        f"the adapter a of {watched.base.model_id} is refused: it changes"
        " model.vision_tower.layers.0"
    )
    assert "run python -m export with its id" in line
    assert set(watched.adapters.refused.values()) == {line.partition("refused: ")[2]}


def test_a_removed_adapter_stays_as_long_as_a_call_may_take(watched: Watched) -> None:
    key = watched.write("a")
    assert watched.update() == {key}
    shutil.rmtree(watched.folder / "a")
    assert watched.update() == {key}
    assert watched.update(CALL_TIMEOUT_S) == {key}
    assert watched.update() == frozenset()


def test_an_adapter_that_comes_back_in_time_stays(watched: Watched) -> None:
    key = watched.write("a")
    watched.update()
    shutil.rmtree(watched.folder / "a")
    watched.update()
    watched.write("a")
    for _ in range(3):
        assert watched.update(CALL_TIMEOUT_S) == {key}


def test_a_replaced_adapter_is_another_build_beside_the_one_before(watched: Watched) -> None:
    before = watched.write("a")
    watched.update()
    after = watched.write("a", 2.0)
    assert watched.update() == {before, after}
    assert watched.update(CALL_TIMEOUT_S + 1) == {after}


def test_an_adapter_that_changes_while_it_is_read_is_not_loaded(
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


def test_an_adapter_may_name_its_base_by_an_alias(watched: Watched) -> None:
    key = watched.write("a", base_model_name_or_path="an/alias")
    assert watched.update() == frozenset()
    watched.aliases = ("an/alias",)
    watched.__post_init__()
    assert watched.update() == {key}


def test_an_adapter_of_another_base_is_left_to_its_runner(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write("a", base_model_name_or_path="another")
    watched.write("b", base_model_name_or_path=None)
    assert watched.update() == frozenset()
    assert not watched.adapters.refused
    assert not caplog.records


def test_a_bad_adapter_is_refused_once_and_the_others_are_loaded(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    bad = watched.write("bad", use_dora=True)
    good = watched.write("good")
    for _ in range(3):
        assert watched.update() == {good}
    assert watched.adapters.refused.keys() == {bad}
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith(f"the adapter bad of {FLORENCE.id} is refused: ")
    assert "use_dora is True" in line
    repaired = watched.write("bad", 3.0)
    assert watched.update() == {good, repaired}
    assert not watched.adapters.refused


def test_an_adapter_that_the_device_cannot_hold_is_refused(watched: Watched) -> None:
    key = watched.write("a")
    watched.loaded.failure = torch.OutOfMemoryError("none left")
    watched.update()
    assert watched.adapters.refused == {key: "it cannot be loaded: OutOfMemoryError"}


def test_an_adapter_above_the_maximum_is_loaded_when_one_is_freed(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    *first, last = (
        watched.write(f"adapter-{value:03}", value) for value in range(MAX_ADAPTERS + 1)
    )
    for _ in range(3):
        assert watched.update() == frozenset(first)
    assert f"{MAX_ADAPTERS} adapters of {FLORENCE.id} are loaded" in watched.adapters.refused[last]
    assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 1
    shutil.rmtree(watched.folder / "adapter-000")
    watched.update()
    assert watched.update(CALL_TIMEOUT_S + 1) == frozenset([*first[1:], last])


def test_an_adapter_of_the_store_with_the_same_build_is_not_loaded_twice_nor_removed(
    watched: Watched,
) -> None:
    key = watched.write("a")
    watched.loaded.keys = frozenset({key})
    assert watched.update() == {key}
    shutil.rmtree(watched.folder / "a")
    watched.update()
    assert watched.update(CALL_TIMEOUT_S + 1) == {key}


def write_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def make_fifo(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    os.mkfifo(folder / WEIGHTS_FILE)


@pytest.mark.parametrize(
    "spoil",
    [
        write_text(CONFIG_FILE, "[" * 100_000),
        write_text(ENTRY_FILE, "license: 2001-13-45"),
        write_text(ENTRY_FILE, "- " * 5_000),
        make_fifo,
        lambda folder: os.truncate(folder / WEIGHTS_FILE, 1 << 40),
    ],
    ids=["nested JSON", "no date", "nested YAML", "FIFO", "a terabyte"],
)
def test_files_that_no_reader_takes_keep_no_other_adapter_out(
    watched: Watched, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object]
) -> None:
    watched.write("bad")
    spoil(watched.folder / "bad")
    good = watched.write("good", 2.0)
    for _ in range(3):
        assert watched.update() == {good}
    # the gateway logs it
    assert [record for record in caplog.records if record.levelno == logging.ERROR] == []


def test_a_rank_or_a_pattern_that_is_not_allowed_is_refused_in_one_line(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {
        watched.write("rank", 2.0, r=17),
        watched.write("pattern", 3.0, rank_pattern={"(?=q)q_proj": 2}),
    }
    good = watched.write("good")
    for _ in range(3):
        assert watched.update() == {good}
    assert watched.adapters.refused.keys() == bad
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == 2
    assert "r is 17, which is not supported; it must be a whole number of 1 to 16" in lines[1]
    assert "rank_pattern has the pattern '(?=q)q_proj'" in lines[0]


def test_an_adapter_for_which_there_is_no_room_is_loaded_when_another_is_freed(
    watched: Watched,
) -> None:
    watched.limits = replace(LIMITS, max_total_bytes=ADAPTER_BYTES)
    watched.follow(AdapterScan(watched.folder, now=lambda: 1e12))
    first = watched.write("a")
    second = watched.write("b", 2.0)
    for _ in range(2):
        assert watched.update() == {first}
    assert watched.adapters.refused == {second: "no room"}
    shutil.rmtree(watched.folder / "a")
    watched.update()
    assert watched.update(CALL_TIMEOUT_S + 1) == {second}
    assert not watched.adapters.refused


def test_an_adapter_whose_files_hang_is_refused_and_the_others_are_loaded(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.write("a")
    good = watched.write("b", 2.0)
    scan = ScanWithHanging(watched.folder, "a")
    watched.follow(scan, read_timeout_s=2)
    for _ in range(3):
        assert watched.update() == {good}
    scan.released.set()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line == "the adapter a is refused: its files could not be read within 2 s"


def test_an_adapter_that_takes_too_long_does_not_hold_the_start(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    key = watched.write("a")
    watched.follow(AdapterScan(watched.folder, now=lambda: 1e12), read_timeout_s=0.2)
    watched.loaded.released = threading.Event()
    watched.adapters.watch(watched.loaded)
    assert watched.loaded.keys == frozenset()
    assert f"the adapters of {FLORENCE.id} are not all loaded after 0.2 s" in caplog.messages[-1]
    watched.loaded.released.set()
    wait_until(lambda: watched.loaded.keys == {key})


def test_a_runner_waits_for_adapters_half_of_its_start_at_most(
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
    worker: Any = ModelWorker(FLORENCE.id, options, no_batcher)
    limit_bytes = LIMITS.max_total_bytes
    worker._decoder = SimpleNamespace(adapters=watched.loaded, max_adapter_bytes=limit_bytes)
    worker._watch_adapters(watched.base, watched.base_folder)
    assert "not all loaded after 0.2 s" in caplog.messages[-1]
    watched.loaded.released.set()
    wait_until(lambda: watched.loaded.keys != frozenset())


async def no_batcher(_image_key: str) -> EncodedImage:
    raise AssertionError("no image is encoded")
