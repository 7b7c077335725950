"""The journal: records survive wherever the last line is cut, and only for the same job."""

import json
from pathlib import Path

import pytest

from diptych_client import AnswerOptions, TaskParameters
from diptych_client.evaluation.job import Job, Journal
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import RunError
from tests.support.client_answers import RESULTS, record

JOB = Job("some_task", "some-model", TaskParameters(labels=["a", "b"]), AnswerOptions(seed=1))
RECORDS = [record(result, f"sub/{index}.png") for index, result in enumerate(RESULTS)]


def written(path: Path) -> bytes:
    """Write a whole journal and return its bytes."""
    with Journal.open(path, JOB) as journal:
        for each in RECORDS:
            journal.append(each)
    return path.read_bytes()


def test_records_are_read_back(tmp_path: Path) -> None:
    written(tmp_path / "new" / "journal.jsonl")
    with Journal.open(tmp_path / "new" / "journal.jsonl", JOB) as journal:
        assert list(journal.records.values()) == RECORDS
        assert all(journal.has(each.image) for each in RECORDS)


def test_a_changed_image_has_no_answer(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        name = RECORDS[0].image.name
        assert journal.has(ImageFile(name, 100, 1))
        assert not journal.has(ImageFile(name, 101, 1))
        assert not journal.has(ImageFile(name, 100, 2))
        assert not journal.has(ImageFile("other.png", 100, 1))


def test_the_last_of_two_answers_to_an_image_is_kept(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    newer = record(RESULTS[1], RECORDS[0].image.name)
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        journal.append(newer)
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        assert journal.records[newer.image.name] == newer
        assert len(journal.records) == len(RECORDS)


def test_a_journal_cut_anywhere_loses_only_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = written(path)
    line_ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in {*range(0, len(whole), 97), *line_ends, *(end + 1 for end in line_ends)}:
        path.write_bytes(whole[:length])
        num_complete = max(0, whole[:length].count(b"\n") - 1)
        with Journal.open(path, JOB) as journal:
            assert list(journal.records.values()) == RECORDS[:num_complete]
            for each in RECORDS[num_complete:]:
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
def test_a_journal_of_another_job_is_rejected_and_unchanged(tmp_path: Path, job: Job) -> None:
    whole = written(tmp_path / "journal.jsonl")
    message = r"belongs to another job: recorded .*choose another --out"
    with (
        pytest.raises(RunError, match=message),
        Journal.open(tmp_path / "journal.jsonl", job),
    ):
        pass
    assert (tmp_path / "journal.jsonl").read_bytes() == whole


def test_lists_and_tuples_of_parameters_are_the_same_job(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    same = Job(JOB.task, JOB.model, TaskParameters(labels=("a", "b")), JOB.options)
    with Journal.open(tmp_path / "journal.jsonl", same) as journal:
        assert journal.records


def test_the_error_names_a_broken_line_that_is_not_the_last(tmp_path: Path) -> None:
    lines = written(tmp_path / "journal.jsonl").splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join([*lines[:2], b"{no json\n", *lines[3:]]))
    with (
        pytest.raises(RunError, match="line 3: invalid JSON"),
        Journal.open(tmp_path / "journal.jsonl", JOB),
    ):
        pass


def test_a_journal_is_locked_while_open(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with (
        Journal.open(path, JOB),
        pytest.raises(RunError, match="is locked by another process"),
        Journal.open(path, JOB),
    ):
        pass
    with Journal.open(path, JOB) as journal:
        assert not journal.records


def test_a_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    odd = record(RESULTS[0], "caf\udce9.png")
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        journal.append(odd)
    assert len((tmp_path / "journal.jsonl").read_text(encoding="ascii").splitlines()) == 2
    with Journal.open(tmp_path / "journal.jsonl", JOB) as journal:
        assert journal.has(odd.image)


def test_the_first_line_is_the_job(tmp_path: Path) -> None:
    first = written(tmp_path / "journal.jsonl").splitlines()[0]
    job = {"task": "some_task", "model": "some-model", "labels": ["a", "b"], "seed": 1}
    assert json.loads(first) == {"job": job}
