"""The journal: what was kept is there again, whatever cut the last line off, and for the same job alone."""

import json
from pathlib import Path

import pytest

from client import AnswerOptions, TaskParameters
from client.annotate import AnnotationError, Job, Journal
from client.annotate.images import ImageFile
from tests.support.client_answers import RESULTS, record

JOB = Job("some_task", "some-model", TaskParameters(labels=["a", "b"]), AnswerOptions(seed=1))
RECORDS = [record(result, f"sub/{index}.png") for index, result in enumerate(RESULTS)]


def written(path: Path) -> bytes:
    """Write a whole journal and return its bytes."""
    with Journal.open(path, JOB) as journal:
        for each in RECORDS:
            journal.append(each)
    return path.read_bytes()


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    written(tmp_path / "new" / "journal.jsonl")
    with Journal.open(tmp_path / "new" / "journal.jsonl", JOB) as journal:
        assert list(journal.records.values()) == RECORDS
        assert all(journal.has(each.image) for each in RECORDS)


def test_an_image_with_other_bytes_is_another_one(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        name = RECORDS[0].image.name
        assert journal.has(ImageFile(name, 100, 1))
        assert not journal.has(ImageFile(name, 101, 1))
        assert not journal.has(ImageFile(name, 100, 2))
        assert not journal.has(ImageFile("other.png", 100, 1))


def test_of_two_answers_about_an_image_the_last_counts(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    newer = record(RESULTS[1], RECORDS[0].image.name)
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        journal.append(newer)
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        assert journal.records[newer.image.name] == newer
        assert len(journal.records) == len(RECORDS)


def test_a_journal_cut_anywhere_loses_its_last_line_alone_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = written(path)
    line_ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in {*range(0, len(whole), 97), *line_ends, *(end + 1 for end in line_ends)}:
        path.write_bytes(whole[:length])
        num_whole = max(0, whole[:length].count(b"\n") - 1)
        with Journal.open(path, JOB) as journal:
            assert list(journal.records.values()) == RECORDS[:num_whole]
            for each in RECORDS[num_whole:]:
                journal.append(each)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "job",
    [
        Job("other_task", JOB.model, JOB.parameters, JOB.options),
        Job(JOB.task, "other-model", JOB.parameters, JOB.options),
        Job(JOB.task, JOB.model, TaskParameters(labels=["a"]), JOB.options),
        Job(JOB.task, JOB.model, JOB.parameters, AnswerOptions(seed=2)),
    ],
)
def test_a_journal_of_another_job_is_refused_and_left_as_it_is(tmp_path: Path, job: Job) -> None:
    whole = written(tmp_path / "journal.jsonl")
    with pytest.raises(AnnotationError, match=r"is of another job: it asked .*choose another --out"):
        Journal.open(tmp_path / "journal.jsonl", job)
    assert (tmp_path / "journal.jsonl").read_bytes() == whole


def test_parameters_are_the_same_as_list_and_as_tuple(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    same = Job(JOB.task, JOB.model, TaskParameters(labels=("a", "b")), JOB.options)
    Journal.open(tmp_path / "journal.jsonl", same).close()


def test_a_broken_line_that_is_not_the_last_is_named(tmp_path: Path) -> None:
    lines = written(tmp_path / "journal.jsonl").splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join([*lines[:2], b"{no json\n", *lines[3:]]))
    with pytest.raises(AnnotationError, match="line 3 is not JSON"):
        Journal.open(tmp_path / "journal.jsonl", JOB)


def test_two_processes_cannot_write_one_journal(tmp_path: Path) -> None:
    with (
        Journal.open(tmp_path / "journal.jsonl", JOB),
        pytest.raises(AnnotationError, match="another process is writing"),
    ):
        Journal.open(tmp_path / "journal.jsonl", JOB)
    Journal.open(tmp_path / "journal.jsonl", JOB).close()


def test_a_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    odd = record(RESULTS[0], "caf\udce9.png")
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        journal.append(odd)
    assert len((tmp_path / "journal.jsonl").read_text(encoding="ascii").splitlines()) == 2
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        assert journal.has(odd.image)


def test_the_first_line_says_what_was_asked(tmp_path: Path) -> None:
    first = written(tmp_path / "journal.jsonl").splitlines()[0]
    asked = {"task": "some_task", "model": "some-model", "labels": ["a", "b"], "seed": 1}
    assert json.loads(first) == {"asked": asked}
