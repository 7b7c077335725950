"""A store of batches, and workers that look at it often."""

from pathlib import Path

import pytest

from service.batches import worker
from service.batches.store import Store


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and save more often than a service does."""
    for module, name in [
        (worker, "_SCAN_S"),
        (worker, "_RETRY_S"),
        (worker, "_SAVE_S"),
        (worker, "_RETRY_AFTER_S"),
    ]:
        monkeypatch.setattr(module, name, 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "batches")
    store.prepare()
    return store
