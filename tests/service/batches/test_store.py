"""The folder: what a batch's output counts, what is removed when, and what a crash leaves."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.batches import store as store_module
from service.batches.store import NO_ROOM, NoRoom, OpenBatch, RenderedLine, Store
from service.batches.wire import DAY_S, MAX_KEPT_S, Batch, BatchError
from service.errors import InvalidRequest, Overloaded
from service.settings import SettingsError
from tests.support.batch_runs import add_file, create, line, now
from tests.support.full_disk import full_disk


def answer(number: int, *, is_answer: bool = True, num_bytes: int = 10) -> RenderedLine:
    return RenderedLine(number, is_answer, b"x" * (num_bytes - 1) + b"\n")


def begun(store: Store, num_requests: int = 4) -> OpenBatch:
    """Return a new batch whose file was checked."""
    batch_id = create(store, *map(line, "abcd")).id
    store.begin(next(batch for batch in store.open_batches() if batch.id == batch_id), num_requests)
    return next(batch for batch in store.open_batches() if batch.id == batch_id)


def batch_of(store: Store, batch: OpenBatch) -> Batch:
    return store.batch(batch.owner, batch.id)


def output_path(store: Store) -> Path:
    """Return the content that has no file yet."""
    (path,) = [
        path for path in (store.path / "files").iterdir() if path.read_bytes().startswith(b"x")
    ]
    return path


def test_folder_is_for_its_user_alone(store: Store) -> None:
    assert store.path.stat().st_mode & 0o777 == 0o700


def test_unusable_folder_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"DIPTYCH_BATCHES_FOLDER.* cannot be written"):
        Store(tmp_path / "file").prepare()
    (tmp_path / "old" / "uploads").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"earlier version.* name an empty folder"):
        Store(tmp_path / "old").prepare()


def test_lines_are_counted_by_batch_and_kind(store: Store) -> None:
    batch, other = begun(store), begun(store)
    store.append(batch, [answer(1), answer(2, is_answer=False)])
    counts = store.append(batch, [answer(4)]).request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 1)
    assert store.is_answered(batch)[:6] == b"\0\1\1\0\1\0"
    assert not any(store.is_answered(other))
    assert [open_batch.num_waiting for open_batch in store.open_batches()] == [1, 4]


def test_request_has_one_line(store: Store) -> None:
    batch = begun(store)
    store.append(batch, [answer(1)])
    with pytest.raises(OSError, match="UNIQUE"):
        store.append(batch, [answer(2), answer(1)])
    assert batch_of(store, batch).request_counts.completed == 1


def test_files_have_what_is_counted(store: Store) -> None:
    batch = begun(store)
    store.append(batch, [answer(1)])
    with output_path(store).open("ab") as content:
        content.write(b"left by a crash")
    store.append(batch, [answer(2, num_bytes=20)])
    with output_path(store).open("ab") as content:
        content.write(b"left by a crash")
    ended = store.end(batch, [])
    assert ended.error_file_id is None
    assert ended.output_file_id is not None
    file = store.file(batch.owner, ended.output_file_id)
    assert (file.filename, file.purpose, file.bytes) == (
        f"{batch.id}_output.jsonl",
        "batch_output",
        30,
    )
    assert file.expires_at - file.created_at == MAX_KEPT_S
    assert store.content(file.id).read_bytes() == answer(1).data + answer(2, num_bytes=20).data
    assert store.open_batches() == []
    assert not any(store.is_answered(batch))
    store.delete_file("me", ended.input_file_id)  # in use until then


def test_first_lines_replace_what_a_crash_left(store: Store) -> None:
    batch = begun(store)
    with pytest.raises(OSError, match="UNIQUE"):
        store.append(batch, [answer(1), answer(1)])
    assert output_path(store).stat().st_size == 20
    store.append(batch, [answer(2)])
    assert output_path(store).stat().st_size == 10


def test_output_counts_towards_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = begun(store)
    input_bytes = store.file("me", batch_of(store, batch).input_file_id).bytes
    create(store, line("a"), owner="other")  # of another key
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_KEY", input_bytes + 30)
    store.append(batch, [answer(1), answer(2, is_answer=False)])
    with pytest.raises(NoRoom):
        store.append(batch, [answer(3), answer(4, num_bytes=1)])
    with pytest.raises(Overloaded):
        store.check_room("me")
    ended = store.end(batch, [NO_ROOM])
    assert (ended.request_counts.completed, ended.request_counts.failed) == (2, 1)
    assert ended.status == "failed"
    with pytest.raises(Overloaded):
        store.check_room("me")  # the files of the batch count as its output did
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_KEY", input_bytes + 31)
    store.check_room("me")
    store.check_room("other")


def test_full_disk_leaves_the_store_as_it_was(store: Store) -> None:
    batch = begun(store)
    store.append(batch, [answer(1)])
    with full_disk(1000), pytest.raises(OSError, match=r"disk|large|file"):
        store.append(batch, [answer(2, num_bytes=2000)])
    assert batch_of(store, batch).request_counts.completed == 1
    store.append(batch, [answer(2)])
    assert output_path(store).stat().st_size == 20


@pytest.mark.parametrize(
    ("is_cancelled", "num_answered", "errors", "status"),
    [
        (False, 4, [], "completed"),
        (True, 4, [], "completed"),
        (True, 3, [], "cancelled"),
        (True, 3, [NO_ROOM], "failed"),
        (False, 3, [], "expired"),
        (False, 3, [NO_ROOM], "failed"),
    ],
)
def test_last_status(
    store: Store, is_cancelled: bool, num_answered: int, errors: list[BatchError], status: str
) -> None:
    batch = begun(store)
    store.append(batch, [answer(number) for number in range(1, num_answered + 1)])
    if is_cancelled:
        assert store.cancel("me", batch.id).status == "cancelling"
    ending = store.begin_end(batch, is_full=bool(errors))
    assert ending.status == ("cancelling" if is_cancelled else "finalizing")
    ended = store.end(batch, errors)
    assert ended == batch_of(store, batch)
    assert ended.status == status
    times = ended.model_dump(include={"completed_at", "cancelled_at", "failed_at", "expired_at"})
    assert {name for name, time_s in times.items() if time_s} == {f"{status}_at"}
    assert bool(ended.cancelling_at) == (is_cancelled and status != "completed")
    with pytest.raises(InvalidRequest, match=f"{batch.id} cannot be cancelled: it is {status}"):
        store.cancel("me", batch.id)


def test_cancellation_before_the_check_stays(store: Store) -> None:
    batch = create(store, line("a"))
    (unchecked,) = store.open_batches()
    store.cancel("me", batch.id)
    store.begin(unchecked, 1)
    assert (now(store, batch).status, now(store, batch).request_counts.total) == ("cancelling", 1)


def test_expired_files_are_removed(store: Store) -> None:
    alone = add_file(store, b"{}")
    running, ended = begun(store), begun(store)
    for batch in (running, ended):
        store.append(batch, [answer(1)])
    store.end(ended, [])
    files = [store.file("me", alone), store.file("me", batch_of(store, running).input_file_id)]
    store.remove_expired(files[0].expires_at)
    assert store.content(alone).exists()
    store.remove_expired(files[0].expires_at + 1)
    assert not store.content(alone).exists()
    for path in (store.path / "files").iterdir():
        os.utime(path, (0, 0))
    store.remove_expired(time.time() + 2 * DAY_S)
    left = {path.stem for path in (store.path / "files").iterdir()}
    output_id = batch_of(store, ended).output_file_id
    assert output_id is not None
    assert {batch_of(store, running).input_file_id, output_id} < left
    assert len(left) == 3  # with the growing output
    store.append(running, [answer(2)])
    store.remove_expired(time.time() + MAX_KEPT_S + 10)
    assert [batch.id for batch in store.batches("me", store_module.Page(None, 9))] == [running.id]


def test_orphans_are_removed_after_a_day(store: Store) -> None:
    add_file(store, b"{}")
    orphan = store.content("file-1")
    orphan.touch()
    store.remove_expired(time.time())
    assert orphan.exists()
    os.utime(orphan, (time.time() - DAY_S - 1,) * 2)
    store.remove_expired(time.time())
    assert len(list((store.path / "files").iterdir())) == 1


def test_one_process_has_the_lock(store: Store) -> None:
    code = (
        "import pathlib, sys; from service.batches.store import Store;"
        "lock = Store(pathlib.Path(sys.argv[1])).lock(); print(lock is not None, flush=True);"
        "input()"
    )
    command = (sys.executable, "-c", code, str(store.path))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert store.lock() is None
        process.kill()
        process.wait()
    lock = store.lock()
    assert isinstance(lock, sqlite3.Connection)
    assert store.lock() is None
    lock.close()
