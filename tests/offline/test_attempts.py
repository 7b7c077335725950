from dataclasses import replace
from pathlib import Path

import pytest

from offline.attempts import Attempt
from offline.output import Output
from tests.offline.test_output import JOB


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """An output whose folder's name is a pattern, too."""
    output = Output(str(tmp_path / "out[1]"), JOB)
    output.begin()
    return output


def test_an_attempt_knows_how_often_a_worker_died_alone_with_each_image(output: Output) -> None:
    first = Attempt.begin(output, 3)
    assert (first.number, dict(first.deaths)) == (1, {})
    second = Attempt.begin(output, 3)
    assert (second.number, dict(second.deaths)) == (2, {})
    second.record(11)
    second.record(12)
    third = Attempt.begin(output, 3)
    assert (third.number, dict(third.deaths)) == (3, {12: 1})
    third.record(12)
    assert dict(Attempt.begin(output, 3).deaths) == {12: 2}


def test_the_attempts_of_other_shards_are_not_counted(output: Output) -> None:
    Attempt.begin(output, 30).record(1)
    assert Attempt.begin(output, 3).number == 1


def test_an_end_forgets_all_attempts_also_those_that_are_gone(output: Output) -> None:
    attempts = [Attempt.begin(output, 0) for _ in range(3)]
    attempts[1].end()
    attempts[2].end()
    assert list((Path(output.uri) / ".incomplete").iterdir()) == []
    assert Attempt.begin(output, 0).number == 1


def test_a_run_that_resumes_begins_with_first_attempts(output: Output) -> None:
    Attempt.begin(output, 0).record(5)
    assert output.begin() == frozenset()
    assert Attempt.begin(output, 0) == replace(Attempt(output, 0))
