"""The folder: what is removed when, and what a process that was killed leaves."""

import os
import time
from pathlib import Path

import pytest

from service.batches.journal import write_whole
from service.batches.store import BatchState, Store
from service.batches.wire import DAY_S, MAX_KEPT_S, BatchRequest, Status
from service.errors import InvalidRequest
from service.settings import SettingsError


def add_file(store: Store) -> str:
    upload = store.uploads / "upload"
    upload.write_bytes(b"{}")
    return store.of("me").upload(upload, "in.jsonl", 3600).id


def add_batch(store: Store, status: Status) -> BatchState:
    folder = store.of("me")
    asked = {
        "input_file_id": add_file(store),
        "endpoint": "/v1/predict",
        "completion_window": "24h",
    }
    state = folder.state(folder.create_batch(BatchRequest.model_validate(asked)).id)
    state.batch.status = status
    folder.save(state)
    folder.content(state.output_id).write_bytes(b"{}\n")
    return state


def test_the_folder_is_for_its_user_alone(store: Store) -> None:
    assert store.path.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="DIPTYCH_BATCHES_FOLDER"):
        Store(tmp_path / "file").prepare()


def test_expired_files_are_removed_but_not_those_of_an_unfinished_batch(store: Store) -> None:
    folder = store.of("me")
    alone = add_file(store)
    running = add_batch(store, "in_progress")
    ended = add_batch(store, "completed")
    store.remove_expired(time.time() + 3500)
    assert alone in folder.file_ids()
    store.remove_expired(time.time() + 2 * DAY_S)
    assert folder.file_ids() == [running.batch.input_file_id]
    assert folder.content(running.output_id).exists()
    assert not folder.content(ended.output_id).exists()
    assert folder.batch_ids() == [running.batch.id, ended.batch.id]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "expired"])
def test_a_batch_that_has_ended_cannot_be_cancelled(store: Store, status: Status) -> None:
    ended = add_batch(store, status).batch
    with pytest.raises(InvalidRequest, match=f"{ended.id} cannot be cancelled: it is {status}"):
        store.of("me").cancel(ended.id)
    assert not store.of("me").is_cancelling(ended.id)


def test_batches_are_kept_for_30_days_after_which_only_unfinished_ones_are(store: Store) -> None:
    running = add_batch(store, "in_progress")
    _ = add_batch(store, "failed")
    store.remove_expired(time.time() + MAX_KEPT_S + 10)
    assert store.of("me").batch_ids() == [running.batch.id]


def test_what_killed_processes_left_is_removed_after_a_day(store: Store) -> None:
    add_file(store)
    left = [
        store.uploads / "x",
        store.of("me").files / "file-1.jsonl",
        store.of("me").files / "file-2.json.1.part",
    ]
    for path in left:
        path.touch()
    store.remove_expired(time.time() + 3500)
    assert all(path.exists() for path in left)
    for path in left:
        os.utime(path, (0, 0))
    store.remove_expired(time.time())
    assert not any(path.exists() for path in left)
    assert len(store.of("me").file_ids()) == 1


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "object"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
