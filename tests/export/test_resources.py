from pathlib import Path

import pytest

from export.errors import ExportError
from export.resources import Needs, available_memory_bytes, free_disk_bytes, needs_of
from tests.support.catalog import CATALOG


def test_too_small_a_host_is_refused_with_both_numbers() -> None:
    Needs(is_large=False, memory_bytes=1e6, disk_bytes=1e6).check_host()
    with pytest.raises(ExportError, match=r"needs 1000000\.0 GB of memory; .* GB are available"):
        Needs(is_large=False, memory_bytes=1e15, disk_bytes=0).check_host()
    with pytest.raises(ExportError, match=r"1000000\.000 GB of disk; .* GB are free in /"):
        Needs(is_large=False, memory_bytes=0, disk_bytes=1e15).check_host()


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
def test_released_models_stay_below_the_stated_limits(
    model_id: str, is_large: bool, max_gb: float
) -> None:
    needs = needs_of(CATALOG[model_id])
    assert needs.is_large == is_large
    assert needs.memory_bytes < max_gb * 1e9


def test_attention_over_a_large_image_is_counted() -> None:
    needs = needs_of(CATALOG["paligemma-3b-pt-896"])
    assert 16e9 < needs.memory_bytes < 19e9


def test_memory_is_at_most_the_limit_of_the_container(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("max\n", encoding="ascii")
    assert available_memory_bytes(tmp_path) > 1_000_000
    limit.write_text("1000000\n", encoding="ascii")
    assert available_memory_bytes(tmp_path) == 1_000_000


def test_disk_of_a_missing_folder_is_its_parents(tmp_path: Path) -> None:
    assert free_disk_bytes(Path("/proc/a/b")) == 0
    assert free_disk_bytes(tmp_path / "a" / "b") > 0
