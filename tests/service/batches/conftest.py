"""A store of batches, and workers that look at it often."""

from pathlib import Path

import pytest

from service.batches import answers, dispatcher, worker
from service.batches.store import Store


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and save more often than a service does."""
    for name in ("_SCAN_S", "_SAVE_S", "RETRY_S"):
        monkeypatch.setattr(dispatcher, name, 0.01)
    for name in ("_LOCK_S", "RETRY_S"):
        monkeypatch.setattr(worker, name, 0.01)
    monkeypatch.setattr(answers, "_RETRY_AFTER_S", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "batches")
    store.prepare()
    return store
