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


def read_all(adapter: AdapterFolder) -> None:
    adapter.is_adapter_of(MANIFEST, ALIASES)
    adapter.hashes(MAX_BYTES)


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
    write(tmp_path / "a", b"others", entry="tasks: {ocr: null}")
    assert settled(tmp_path) != after
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
    ("file", "text", "message"),
    [
        (ENTRY_FILE, "- a list", "must be a mapping of names"),
        (ENTRY_FILE, "a: [", "as YAML"),
        (ENTRY_FILE, "1: 2", "must be a mapping of names"),
        (ENTRY_FILE, "a: &a [x]\nb: *a", "as YAML: ValueError: references"),
        (ENTRY_FILE, "license: 2001-13-45", "as YAML: ValueError"),
        (ENTRY_FILE, "license: !!bool x", "as YAML: KeyError"),
        (ENTRY_FILE, "six_levels: [[[[[]]]]]", "more than 5 levels"),
        (ENTRY_FILE, "a: " + "[" * 5_000, "as YAML: ValueError: .* more than 5 levels"),
        (ENTRY_FILE, "a: b" + " " * MAX_ENTRY_BYTES, "at most 16384 are allowed"),
        (CONFIG_FILE, "", "cannot be read as JSON"),
        (CONFIG_FILE, "[]", "must be a mapping of names"),
        (CONFIG_FILE, "{}", "has no name of a base: None"),
        (CONFIG_FILE, '{"base_model_name_or_path": ["a"]}', "has no name of a base: .'a'"),
        (CONFIG_FILE, "[" * 100_000, "cannot be read as JSON: RecursionError: maximum recursion"),
        (CONFIG_FILE, " " * MAX_CONFIG_BYTES + "{}", "has 1000002 bytes; at most 1000000 are"),
        (WEIGHTS_FILE, "w" * (MAX_BYTES + 1), "has 1001 bytes; at most 1000 are allowed"),
    ],
    ids=lambda value: value[:20],
)
def test_bad_file_is_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    (write(tmp_path / "a") / file).write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_all(settled(tmp_path))


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, ENTRY_FILE])
@pytest.mark.parametrize("kind", list(SPECIAL_FILES))
def test_special_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / "a") / name
    path.unlink(missing_ok=True)
    SPECIAL_FILES[kind](path)
    with pytest.raises(ArtifactError, match=f"{name} (must be a regular file|cannot be read)"):
        read_all(settled(tmp_path))


def test_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", b"w" * MAX_BYTES)
    adapter = settled(tmp_path)
    assert len(adapter.hashes(MAX_BYTES)) == 2
    os.remove(tmp_path / "a" / WEIGHTS_FILE)
    with pytest.raises(ArtifactError, match=WEIGHTS_FILE):
        adapter.hashes(MAX_BYTES)
    assert reason_of(ValueError("a\n  b\x1b[31m\u2028" + "c" * 1_000)) == "a b?[31m " + "c" * 491
