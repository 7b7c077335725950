"""The scan of a folder of adapters: complete sub-folders only, another version for each change, one
key for all.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.catalog import FLORENCE
from tests.support.fake_service import served
from tests.support.hostile_adapters import SPECIAL_FILES
from wire.artifacts.adapter_folder import (
    CONFIG_FILE,
    ENTRY_FILE,
    MAX_CONFIG_BYTES,
    MAX_ENTRY_BYTES,
    WEIGHTS_FILE,
    AdapterError,
    AdapterFolder,
    AdapterScan,
    adapter_build_key,
    reason_of,
)

MANIFEST = served(FLORENCE).manifest
ALIASES = ("an/alias",)
MAX_BYTES = 1_000


class Clock:
    """Seconds after the last change of any file."""

    later_s = 0.0

    def __call__(self) -> float:
        return self.later_s + max(path.stat().st_ctime for path in self.folder.rglob("*"))

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def write(
    folder: Path, weights: bytes = b"weights", base: str = FLORENCE.id, entry: str | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / WEIGHTS_FILE).write_bytes(weights)
    if entry is not None:
        (folder / ENTRY_FILE).write_text(entry)
    return folder


def settled(folder: Path) -> AdapterFolder:
    """Return the only adapter of a folder whose files are old."""
    (adapter,) = AdapterScan(folder, now=lambda: 1e12).scan().values()
    return adapter


def test_a_new_adapter_is_found_once_it_has_not_changed_between_two_scans(tmp_path: Path) -> None:
    scan = AdapterScan(tmp_path, Clock(tmp_path))
    write(tmp_path / "a")
    assert scan.scan() == {}
    write(tmp_path / "a", b"more")
    assert scan.scan() == {}
    assert scan.scan().keys() == {"a"}


def test_an_old_adapter_is_found_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a")
    clock = Clock(tmp_path)
    clock.later_s = 2
    assert AdapterScan(tmp_path, clock).scan().keys() == {"a"}


def test_a_clock_of_the_files_that_is_ahead_delays_by_one_scan(tmp_path: Path) -> None:
    write(tmp_path / "a")
    scan = AdapterScan(tmp_path, now=lambda: 0.0)
    assert scan.scan() == {}
    assert scan.scan().keys() == {"a"}


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_sub_folder_without_one_of_the_files_is_no_adapter(tmp_path: Path, missing: str) -> None:
    (write(tmp_path / "a") / missing).unlink()
    scan = AdapterScan(tmp_path, now=lambda: 1e12)
    assert scan.scan() == {}
    assert scan.scan() == {}


def test_hidden_sub_folders_and_files_are_no_adapters(tmp_path: Path) -> None:
    write(tmp_path / ".new")
    (tmp_path / "README").write_text("text")
    assert AdapterScan(tmp_path, now=lambda: 1e12).scan() == {}


def test_while_an_adapter_is_replaced_the_version_before_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a")
    scan = AdapterScan(tmp_path, Clock(tmp_path))
    scan.scan()
    before = scan.scan()["a"]
    write(tmp_path / "a", b"others")
    assert scan.scan()["a"] == before
    assert not before.is_current()
    after = scan.scan()["a"]
    assert after != before
    assert after.is_current()


@pytest.mark.parametrize("entry", [None, "tasks: {ocr: null}"])
def test_every_change_of_a_file_is_another_version(tmp_path: Path, entry: str | None) -> None:
    before = (write(tmp_path / "a", entry="license: MIT"), settled(tmp_path))[1]
    write(
        tmp_path / "a", b"WEIGHTS" if entry is None else b"weights", entry=entry or "license: MIT"
    )
    assert settled(tmp_path) != before


def test_an_adapter_whose_files_are_removed_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "a")
    scan = AdapterScan(tmp_path, now=lambda: 1e12)
    assert scan.scan().keys() == {"a"}
    shutil.rmtree(tmp_path / "a")
    assert scan.scan() == {}


def test_while_the_folder_cannot_be_read_nothing_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "all" / "a")
    scan = AdapterScan(tmp_path / "all", now=lambda: 1e12)
    found = scan.scan()
    (tmp_path / "all").rename(tmp_path / "elsewhere")
    assert scan.scan() == scan.scan() == found
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (tmp_path / "elsewhere").rename(tmp_path / "all")
    assert scan.scan() == found


def test_the_build_key_is_of_both_files_and_the_base(tmp_path: Path) -> None:
    one = settled((write(tmp_path / "one" / "a"), tmp_path / "one")[1]).hashes(MAX_BYTES)
    same = settled((write(tmp_path / "two" / "b"), tmp_path / "two")[1]).hashes(MAX_BYTES)
    other = settled((write(tmp_path / "three" / "a", b"others"), tmp_path / "three")[1]).hashes(
        MAX_BYTES
    )
    keys = [
        adapter_build_key(hashes, base)
        for hashes in (one, same, other)
        for base in ("base", "another base")
    ]
    assert keys[:2] == keys[2:4]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("base", "entry", "is_own"),
    [
        (FLORENCE.id, None, True),
        (FLORENCE.source, None, True),
        ("another/model", None, False),
        ("an/alias", None, True),
        ("another/model", "adapter_of: an/alias", True),
        ("another/model", f"adapter_of: {FLORENCE.id}", True),
        (FLORENCE.id, "adapter_of: another", False),
        (FLORENCE.id, "license: MIT", True),
        (FLORENCE.id, "five_levels: [[[[]]]]", True),
    ],
)
def test_the_base_is_that_of_the_entry_or_of_peft(
    tmp_path: Path, base: str, entry: str | None, is_own: bool
) -> None:
    write(tmp_path / "a", base=base, entry=entry)
    assert settled(tmp_path).is_adapter_of(MANIFEST, ALIASES) == is_own
    assert not settled(tmp_path).is_adapter_of(replace(MANIFEST, model_id="x", source="y"), ())


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("- a list", "must have keys"),
        ("a: [", "as YAML"),
        ("1: 2", "keys"),
        ("a: &a [x]\nb: *a", "as YAML: ValueError: references"),
        ("license: 2001-13-45", "as YAML: ValueError"),
        ("license: !!bool x", "as YAML: KeyError"),
        ("six_levels: [[[[[]]]]]", "more than 5 levels"),
        ("a: " + "[" * 5_000, "as YAML: ValueError: .* more than 5 levels"),
        ("license: MIT" + " " * MAX_ENTRY_BYTES, "at most 16384 are allowed"),
    ],
)
def test_an_entry_that_is_no_mapping_is_named(tmp_path: Path, entry: str, named: str) -> None:
    write(tmp_path / "a", entry=entry)
    with pytest.raises(AdapterError, match=named):
        settled(tmp_path).is_adapter_of(MANIFEST, ALIASES)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "must be an object"),
        ("{}", "base_model_name_or_path"),
        ('{"base_model_name_or_path": ["a"]}', "base_model_name_or_path"),
        ("[" * 100_000, "cannot be read as JSON: RecursionError: maximum recursion depth"),
        (" " * MAX_CONFIG_BYTES + "{}", "has 1000002 bytes; at most 1000000 are allowed"),
    ],
    ids=["empty", "a list", "no base", "a list as base", "nested", "large"],
)
def test_a_configuration_that_names_no_base_is_refused(
    tmp_path: Path, config: str, named: str
) -> None:
    (write(tmp_path / "a") / CONFIG_FILE).write_text(config)
    with pytest.raises(AdapterError, match=named):
        settled(tmp_path).base_name()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, ENTRY_FILE])
@pytest.mark.parametrize("kind", list(SPECIAL_FILES))
def test_a_file_that_could_block_its_reader_is_refused_at_once(
    tmp_path: Path, name: str, kind: str
) -> None:
    path = write(tmp_path / "a") / name
    path.unlink(missing_ok=True)
    SPECIAL_FILES[kind](path)
    adapter = settled(tmp_path)
    with pytest.raises(AdapterError, match=f"{name} (must be a regular file|cannot be read)"):
        (adapter.base_name(), adapter.hashes(MAX_BYTES))


def test_weights_above_the_limit_are_not_read(tmp_path: Path) -> None:
    os.truncate(write(tmp_path / "a") / WEIGHTS_FILE, 10 * MAX_BYTES)
    with pytest.raises(AdapterError, match="has 10000 bytes; at most 1000 are allowed"):
        settled(tmp_path).hashes(MAX_BYTES)


def safetensors_header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


HEAD = "base_model.model.lm_head.base_layer.weight"
PRODUCT = "base_model.model.lm_head.lora_A.weight"
SIZES = {HEAD: {"data_offsets": [0, 7_500]}, PRODUCT: {"data_offsets": [7_500, 10_000]}}


@pytest.mark.parametrize(
    ("header", "ending"),
    [
        (
            json.dumps({"__metadata__": {"format": "pt"}, **SIZES}),
            "; 75.0% of it are copies of head and embeddings, which are not needed unless they were"
            " trained: save it with save_embedding_layers=False",
        ),
        (json.dumps({PRODUCT: SIZES[PRODUCT]}), ""),
        (json.dumps({HEAD: {"data_offsets": "none"}}), ""),
        (json.dumps({HEAD: [0]}), ""),
        ("[" * 5_000, ""),
        ("[]", ""),
        ("{}", ""),
    ],
)
def test_weights_above_the_limit_are_refused_with_the_share_that_is_not_needed(
    tmp_path: Path, header: str, ending: str
) -> None:
    path = write(tmp_path / "a") / WEIGHTS_FILE
    path.write_bytes(safetensors_header(header))
    os.truncate(path, 10 * MAX_BYTES)
    with pytest.raises(AdapterError) as refused:
        settled(tmp_path).hashes(MAX_BYTES)
    assert str(refused.value) == f"{path} has 10000 bytes; at most 1000 are allowed{ending}"


def test_a_reason_is_one_line_that_can_be_printed() -> None:
    assert reason_of(ValueError("a\n  b\x1b[31m\u2028" + "c" * 1_000)) == "a b?[31m " + "c" * 491


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    adapter = settled(tmp_path)
    os.remove(tmp_path / "a" / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=WEIGHTS_FILE):
        adapter.hashes(MAX_BYTES)
