from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoints.bases import CATALOG_FILE
from export.errors import ExportError
from export.resources import Needs, available_memory_bytes, check_host, needs_of
from tasks.catalog import load_catalog

CATALOG = load_catalog(CATALOG_FILE)
NEEDS = Needs(is_large=False, memory_bytes=4e9, disk_bytes=2e9, minutes=3)
GB = 1 << 30


def test_needs_are_told_with_units() -> None:
    assert str(NEEDS) == "the export needs 4.0 GB of memory, 2.0 GB of disk and about 3 minutes"
    small = replace(NEEDS, disk_bytes=11e6, minutes=0.5)
    assert str(small) == "the export needs 4.0 GB of memory, 11 MB of disk and about a minute"


def test_host_with_enough_passes() -> None:
    NEEDS.check(4e9, {Path("/"): 2e9})
    NEEDS.check(None, {})


def test_too_little_memory_is_refused_with_both_numbers() -> None:
    with pytest.raises(ExportError, match=r"needs 4\.0 GB of memory; 3\.9 GB are available here"):
        NEEDS.check(3.9e9, {Path("/"): 2e9})


def test_too_little_disk_is_refused_with_both_numbers_and_the_folder() -> None:
    with pytest.raises(
        ExportError, match=r"needs 2\.0 GB of disk; 1\.9 GB are free in /some/where"
    ):
        NEEDS.check(4e9, {Path("/some"): 2e9, Path("/some/where"): 1.9e9})


@pytest.mark.parametrize(
    ("model_id", "is_large", "max_gb"),
    [
        ("paligemma-mini", False, 2),
        ("florence-2-base", False, 5),
        ("florence-2-large", False, 13),
        ("paligemma-3b-mix-224", True, 12),
        ("paligemma-3b-mix-448", True, 12),
        ("paligemma-2-10b-mix-224", True, 24),
    ],
)
def test_memory_of_released_models_stays_below_the_stated_limits(
    model_id: str, is_large: bool, max_gb: float
) -> None:
    needs = needs_of(CATALOG[model_id], num_cores=2)
    assert needs.is_large == is_large
    assert needs.memory_bytes < max_gb * 1e9


def test_attention_over_a_large_image_is_counted() -> None:
    """17.5 GB and an hour with one layer of Gemma (docs/models.md)."""
    needs = needs_of(CATALOG["paligemma-3b-pt-896"], num_cores=2)
    assert 16e9 < needs.memory_bytes < 19e9
    assert 50 < needs.minutes < 90


def host(
    folder: Path, available_kb: int, groups: dict[str, tuple[str, int, int]]
) -> tuple[Path, Path]:
    """Write /proc and the control groups of a host: by path limit, bytes in use, and page cache
    among these.
    """
    proc = folder / "proc"
    cgroups = folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available_kb} kB\n")
    (proc / "self" / "cgroup").write_text("0::/pods/one\n")
    for name, (limit, used, cache) in groups.items():
        group = cgroups / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nactive_file 0\n")
    return proc, cgroups


def test_memory_without_a_limit_is_the_hosts(tmp_path: Path) -> None:
    assert available_memory_bytes(*host(tmp_path, 8 << 20, {"pods/one": ("max", GB, 0)})) == 8 * GB


@pytest.mark.parametrize("limited", ["pods/one", "pods"])
def test_limit_of_a_control_group_or_of_one_above_it_counts_without_page_cache(
    tmp_path: Path, limited: str
) -> None:
    group = {limited: (str(3 * GB), 2 * GB, GB)}
    assert available_memory_bytes(*host(tmp_path, 8 << 20, group)) == 2 * GB


def test_system_that_does_not_tell_is_unknown(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path) is None


def test_this_host_has_less_than_a_petabyte_of_memory_and_of_disk() -> None:
    with pytest.raises(ExportError, match="of memory"):
        check_host(replace(NEEDS, memory_bytes=1e15))
    with pytest.raises(ExportError, match="of disk"):
        check_host(replace(NEEDS, memory_bytes=0, disk_bytes=1e15))
