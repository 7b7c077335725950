import asyncio
import re

from tests.support.export_cli import ModelStore
from tests.support.request_path import request_path


def test_a_predict_crosses_few_rooms() -> None:
    """Numbers of `python -m tests.support.request_path`; a change that lowers them lowers these."""
    path = asyncio.run(request_path())
    assert len(path.files) <= 31
    assert len(path.functions) <= 122
    assert path.num_changes <= 95


def test_a_call_crosses_few_rooms_of_the_runner(exported: ModelStore) -> None:
    """Numbers of `--runner`, and some functions that are called only now and then."""
    run = exported.forked("-m", "tests.support.request_path", "--runner")
    num_files, num_functions, _ = map(int, re.findall(r"\d+", run.stdout))
    assert num_files <= 38, run.stderr
    assert num_functions <= 165
