"""The folder: what a batch's output counts, what is removed when, and what a crash leaves."""

import os
import time
from pathlib import Path

import pytest

from service.batches import store as store_module
from service.batches.store import NO_ROOM, BatchState, LinePlace, NoRoom, OutputLine, Store
from service.batches.wire import DAY_S, MAX_KEPT_S, Batch, BatchError
from service.errors import InvalidRequest, Overloaded
from service.settings import SettingsError
from tests.support.batch_runs import add_file, create, line, now
from tests.support.export_cli import full_disk

PLACES = [LinePlace(number, 10 * number, 9) for number in (1, 2, 3, 4)]


def answer(number: int, *, is_answer: bool = True, num_bytes: int = 10) -> OutputLine:
    return OutputLine(number, is_answer, b"%d" % number + b"x" * (num_bytes - 2) + b"\n")


def begun(store: Store) -> BatchState:
    """Return a new batch whose file was checked."""
    batch_id = create(store, *map(line, "abcd")).id
    for state in store.open_batches():
        if state.id == batch_id:
            store.begin(state, PLACES)
            return state
    raise AssertionError


def numbers(store: Store, state: BatchState) -> list[int]:
    return [place.number for place in store.unanswered(state)]


def batch_of(store: Store, state: BatchState) -> Batch:
    return store.batch(state.owner, state.id)


def test_folder_is_for_its_user_alone(store: Store) -> None:
    assert store.path.stat().st_mode & 0o777 == 0o700


def test_unusable_folder_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"DIPTYCH_BATCHES_FOLDER.* cannot be written"):
        Store(tmp_path / "file").prepare()


def test_lines_are_counted_by_batch_and_kind(store: Store) -> None:
    state, other = begun(store), begun(store)
    store.append(state, [answer(1), answer(2, is_answer=False)])
    counts = store.append(state, [answer(4)]).request_counts
    assert (counts.total, counts.completed, counts.failed) == (4, 2, 1)
    assert store.unanswered(state) == [PLACES[2]]
    assert store.unanswered(other) == PLACES
    assert [open_.batch.request_counts.num_waiting for open_ in store.open_batches()] == [1, 4]


def test_files_of_an_ended_batch(store: Store) -> None:
    state = begun(store)
    store.append(state, [answer(3), answer(4, is_answer=False)])
    store.append(state, [answer(1, num_bytes=20)])
    ended = store.end(state, [])
    for kind, file_id, lines in (
        ("output", ended.output_file_id, [answer(1, num_bytes=20), answer(3)]),
        ("error", ended.error_file_id, [answer(4)]),
    ):
        assert file_id is not None
        file = store.file(state.owner, file_id)
        content = b"".join(output_line.data for output_line in lines)
        assert (file.filename, file.purpose, file.bytes) == (
            f"{state.id}_{kind}.jsonl",
            "batch_output",
            len(content),
        )
        assert file.expires_at - file.created_at == MAX_KEPT_S
        assert store.content(file.id).read_bytes() == content
    assert store.open_batches() == []
    assert store.unanswered(state) == []
    store.delete_file("me", ended.input_file_id)  # in use until then


def test_end_after_a_crash(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    state = begun(store)
    store.append(state, [answer(1)])
    monkeypatch.setattr(store_module, "_insert", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.end(state, [])
    monkeypatch.undo()
    store.append(state, [answer(2)])
    ended = store.end(state, [])
    assert store.content(str(ended.output_file_id)).read_bytes() == answer(1).data + answer(2).data


def test_output_counts_towards_the_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    state = begun(store)
    input_bytes = store.file("me", state.batch.input_file_id).bytes
    create(store, line("a"), owner="other")  # of another key
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_KEY", input_bytes + 30)
    store.append(state, [answer(1), answer(2, is_answer=False)])
    with pytest.raises(NoRoom):
        store.append(state, [answer(3, num_bytes=11)])
    store.append(state, [answer(3)])
    store.append(state, [])
    with pytest.raises(Overloaded):
        add_file(store, b"x")
    ended = store.end(state, [NO_ROOM])
    assert (ended.request_counts.completed, ended.request_counts.failed) == (2, 1)
    assert ended.status == "failed"
    with pytest.raises(Overloaded):
        add_file(store, b"x")  # the files of the batch count as its output did
    monkeypatch.setattr(store_module, "MAX_BYTES_PER_KEY", input_bytes + 31)
    add_file(store, b"x")


def test_full_disk_leaves_the_store_as_it_was(store: Store) -> None:
    state = begun(store)
    store.append(state, [answer(1)])
    with full_disk(1000), pytest.raises(OSError, match=r"disk|large|file"):
        store.append(state, [answer(2, num_bytes=2000)])
    assert batch_of(store, state).request_counts.completed == 1
    assert numbers(store, state) == [2, 3, 4]


@pytest.mark.parametrize(
    ("is_cancelled", "num_answered", "errors", "status"),
    [
        (False, 4, [], "completed"),
        (True, 4, [], "completed"),
        (True, 3, [], "cancelled"),
        (True, 3, [NO_ROOM], "failed"),
        (False, 4, [], "expired"),
        (False, 3, [NO_ROOM], "failed"),
    ],
)
def test_last_status(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    is_cancelled: bool,
    num_answered: int,
    errors: list[BatchError],
    status: str,
) -> None:
    state = begun(store)
    store.append(state, [answer(number) for number in range(1, num_answered + 1)])
    if is_cancelled:
        assert store.cancel("me", state.id).status == "cancelling"
    if status == "expired":
        monkeypatch.setattr(time, "time", lambda: state.batch.expires_at)
    ended = store.end(state, errors)
    assert ended == batch_of(store, state)
    assert ended.status == status
    times = ended.model_dump(include={"completed_at", "cancelled_at", "failed_at", "expired_at"})
    assert {name for name, time_s in times.items() if time_s} == {f"{status}_at"}
    assert bool(ended.cancelling_at) == (is_cancelled and status != "completed")
    with pytest.raises(InvalidRequest, match=f"{state.id} cannot be cancelled: it is {status}"):
        store.cancel("me", state.id)


def test_cancellation_before_the_check_stays(store: Store) -> None:
    batch = create(store, line("a"))
    (unchecked,) = store.open_batches()
    store.cancel("me", batch.id)
    store.begin(unchecked, PLACES)
    assert (now(store, batch).status, now(store, batch).request_counts.total) == ("cancelling", 4)


def test_expired_files_are_removed(store: Store) -> None:
    alone = add_file(store, b"{}")
    running, ended = begun(store), begun(store)
    store.append(ended, [answer(1)])
    output_id = str(store.end(ended, []).output_file_id)
    expires_at = store.file("me", alone).expires_at
    store.remove_expired(expires_at)
    assert store.content(alone).exists()
    for path in (store.path / "files").iterdir():
        os.utime(path, (0, 0))
    store.remove_expired(expires_at + 60)
    left = {path.stem for path in (store.path / "files").iterdir()}
    assert left == {running.batch.input_file_id, output_id}
    store.remove_expired(time.time() + MAX_KEPT_S + 10)
    assert [batch.id for batch in store.batches("me")] == [running.id]


def test_orphans_are_removed_after_a_day(store: Store) -> None:
    add_file(store, b"{}")
    orphan = store.content("file-1")
    orphan.touch()
    store.remove_expired(time.time())
    assert orphan.exists()
    os.utime(orphan, (time.time() - DAY_S - 1,) * 2)
    store.remove_expired(time.time())
    assert len(list((store.path / "files").iterdir())) == 1
