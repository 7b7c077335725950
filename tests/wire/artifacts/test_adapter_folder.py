"""The scan of a folder of adapters: complete sub-folders only, another version for each change, one
key for all.
"""

import json
import os
import shutil
from collections.abc import Callable
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
    AdapterFolder,
    AdapterScan,
    adapter_build_key,
    reason_of,
)
from wire.artifacts.manifest import ArtifactError

MANIFEST = served(FLORENCE).manifest
ALIASES = ("an/alias",)
MAX_BYTES = 1_000


def write(
    folder: Path, weights: bytes = b"weights", base: str = FLORENCE.id, entry: str | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / WEIGHTS_FILE).write_bytes(weights)
    if entry is not None:
        (folder / ENTRY_FILE).write_text(entry)
    return folder


def now_of(folder: Path, later_s: float = 0.0) -> Callable[[], float]:
    """Return a clock that shows `later_s` after the last change of any file."""
    return lambda: later_s + max(path.stat().st_ctime for path in folder.rglob("*"))


def old(folder: Path) -> AdapterScan:
    """Return a scan to which all files are old."""
    return AdapterScan(folder, now=lambda: 1e12)


def settled(folder: Path) -> AdapterFolder:
    (adapter,) = old(folder).scan().values()
    return adapter


def test_adapter_is_complete_when_unchanged(tmp_path: Path) -> None:
    """An old one is at once; a clock of the files that is ahead delays by one scan."""
    scan = AdapterScan(tmp_path, now_of(tmp_path))
    write(tmp_path / "a")
    assert scan.scan() == {}
    write(tmp_path / "a", b"more")
    assert scan.scan() == {}
    assert scan.scan().keys() == {"a"}
    assert AdapterScan(tmp_path, now_of(tmp_path, 1.01)).scan().keys() == {"a"}
    ahead = AdapterScan(tmp_path, now=lambda: 0.0)
    assert [list(ahead.scan()) for _ in range(2)] == [[], ["a"]]


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_incomplete_and_hidden_folders(tmp_path: Path, missing: str) -> None:
    (write(tmp_path / "a") / missing).unlink()
    write(tmp_path / ".new")
    (tmp_path / "README").write_text("text")
    scan = old(tmp_path)
    assert [scan.scan(), scan.scan()] == [{}, {}]


def test_replaced_adapter(tmp_path: Path) -> None:
    """While it is written, the version before is found."""
    write(tmp_path / "a")
    scan = AdapterScan(tmp_path, now_of(tmp_path))
    scan.scan()
    before = scan.scan()["a"]
    write(tmp_path / "a", b"others")
    assert scan.scan()["a"] == before
    after = scan.scan()["a"]
    assert after != before
    assert (before.is_current(), after.is_current()) == (False, True)


@pytest.mark.parametrize("entry", [None, "tasks: {ocr: null}"])
def test_change_of_a_file_is_another_version(tmp_path: Path, entry: str | None) -> None:
    write(tmp_path / "a", entry="license: MIT")
    before = settled(tmp_path)
    weights = b"WEIGHTS" if entry is None else b"weights"
    write(tmp_path / "a", weights, entry=entry or "license: MIT")
    assert settled(tmp_path) != before


def test_removed_adapter_is_gone(tmp_path: Path) -> None:
    write(tmp_path / "a")
    scan = old(tmp_path)
    assert scan.scan().keys() == {"a"}
    shutil.rmtree(tmp_path / "a")
    assert scan.scan() == {}


def test_unreadable_folder_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "all" / "a")
    scan = old(tmp_path / "all")
    adapters = scan.scan()
    (tmp_path / "all").rename(tmp_path / "elsewhere")
    assert scan.scan() == scan.scan() == adapters
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    (tmp_path / "elsewhere").rename(tmp_path / "all")
    assert scan.scan() == adapters


def test_build_key_is_of_files_and_base(tmp_path: Path) -> None:
    keys: list[str] = []
    for name, weights in (("one/a", b"weights"), ("two/b", b"weights"), ("three/a", b"others")):
        hashes = settled(write(tmp_path / name, weights).parent).hashes(MAX_BYTES)
        keys += [adapter_build_key(hashes, base) for base in ("base", "another base")]
    assert keys[:2] == keys[2:4]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("base", "entry", "is_adapter"),
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
def test_base_of_entry_or_peft(
    tmp_path: Path, base: str, entry: str | None, is_adapter: bool
) -> None:
    write(tmp_path / "a", base=base, entry=entry)
    assert settled(tmp_path).is_adapter_of(MANIFEST, ALIASES) == is_adapter
    assert not settled(tmp_path).is_adapter_of(replace(MANIFEST, model_id="x", source="y"), ())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("- a list", "must be a mapping of names"),
        ("a: [", "as YAML"),
        ("1: 2", "must be a mapping of names"),
        ("a: &a [x]\nb: *a", "as YAML: ValueError: references"),
        ("license: 2001-13-45", "as YAML: ValueError"),
        ("license: !!bool x", "as YAML: KeyError"),
        ("six_levels: [[[[[]]]]]", "more than 5 levels"),
        ("a: " + "[" * 5_000, "as YAML: ValueError: .* more than 5 levels"),
        ("license: MIT" + " " * MAX_ENTRY_BYTES, "at most 16384 are allowed"),
    ],
)
def test_bad_entry_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    write(tmp_path / "a", entry=entry)
    with pytest.raises(ArtifactError, match=message):
        settled(tmp_path).is_adapter_of(MANIFEST, ALIASES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[]", "must be a mapping of names"),
        ("{}", "has no name of a base: None"),
        ('{"base_model_name_or_path": ["a"]}', "has no name of a base: .'a'"),
        ("[" * 100_000, "cannot be read as JSON: RecursionError: maximum recursion depth"),
        (" " * MAX_CONFIG_BYTES + "{}", "has 1000002 bytes; at most 1000000 are allowed"),
    ],
    ids=["empty", "a list", "no base", "a list as base", "nested", "large"],
)
def test_bad_configuration_is_refused(tmp_path: Path, config: str, message: str) -> None:
    (write(tmp_path / "a") / CONFIG_FILE).write_text(config)
    with pytest.raises(ArtifactError, match=message):
        settled(tmp_path).base_name()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, ENTRY_FILE])
@pytest.mark.parametrize("kind", list(SPECIAL_FILES))
def test_special_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / "a") / name
    path.unlink(missing_ok=True)
    SPECIAL_FILES[kind](path)
    adapter = settled(tmp_path)
    with pytest.raises(ArtifactError, match=f"{name} (must be a regular file|cannot be read)"):
        (adapter.base_name(), adapter.hashes(MAX_BYTES))


def test_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", b"w" * MAX_BYTES)
    adapter = settled(tmp_path)
    assert len(adapter.hashes(MAX_BYTES)) == 2
    os.remove(tmp_path / "a" / WEIGHTS_FILE)
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        adapter.hashes(MAX_BYTES)


def test_weights_above_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"w" * (MAX_BYTES + 1)) / WEIGHTS_FILE
    with pytest.raises(ArtifactError, match=f"{path} has 1001 bytes; at most 1000 are allowed"):
        settled(tmp_path).hashes(MAX_BYTES)


def test_reason_is_one_line() -> None:
    assert reason_of(ValueError("a\n  b\x1b[31m\u2028" + "c" * 1_000)) == "a b?[31m " + "c" * 491
